package dovecot

// NotifyURL is what the ox driver is told.
func NotifyURL(s *Server) string { return s.notes.url() }

// PID is the master's, which is also its process group's.
func PID(s *Server) int { return s.proc.cmd.Process.Pid }

// GroupOthers counts a group's living processes but for its leader.
var GroupOthers = groupOthers

// Interfering returns o with f called between choosing ports and starting.
func Interfering(o Options, f func(*Server)) Options {
	o.chosen = f
	return o
}
