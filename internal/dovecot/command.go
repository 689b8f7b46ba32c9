package dovecot

import (
	"context"
	"os/exec"
)

// Command prepares one of Dovecot's own programs, such as "doveconf" or
// "dovecot-lda", to run with this server's settings (-c) and whatever args
// follow. It runs as this process does, below the server's root.
func (s *Server) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	dir := map[string]string{"doveconf": "/usr/bin", "dovecot-lda": "/usr/lib/dovecot"}[program]
	if dir == "" {
		dir = "/usr/bin"
	}
	cmd := exec.CommandContext(ctx, dir+"/"+program, append([]string{"-c", s.install.inside(s.path("dovecot.conf"))}, args...)...)
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.SysProcAttr = s.install.ids.attributes(s.install.Root)
	return cmd
}
