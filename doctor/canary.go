package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/emersion/go-smtp"

	"dovepush/config"
)

// canary is the message whose notification is waited for.
type canary struct {
	user, subject string
	text          string
}

// newCanary makes the message. It stays in the mailbox, and says what it is.
func newCanary(user, token string, now time.Time) canary {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	c := canary{user: user, subject: "dovepush doctor: test " + token + " (may be deleted)"}
	lines := []string{
		"From: dovepush doctor <dovepush@" + host + ">",
		"To: undisclosed-recipients:;",
		"Subject: " + c.subject,
		"Date: " + now.Format(time.RFC1123Z),
		"Message-ID: <" + token + ".doctor@" + host + ">",
		"Auto-Submitted: auto-generated", // RFC 3834: no vacation reply
		"MIME-Version: 1.0",
		"Content-Type: text/plain; charset=us-ascii",
		"",
		"dovepush doctor --deliver has sent this to see whether Dovecot tells of",
		"new mail. It may be deleted.",
		"",
	}
	c.text = strings.Join(lines, "\r\n")
	return c
}

// usualLMTP is where Dovecot puts its socket.
const usualLMTP = "/run/dovecot/lmtp"

// lmtpAddress says where to deliver.
func (d *doctor) lmtpAddress(s *config.Server) (network, address string) {
	where := d.LMTP
	switch {
	case where != "":
	case isSocket(usualLMTP):
		where = "unix:" + usualLMTP
	default:
		host, _, err := net.SplitHostPort(s.Address)
		if err != nil {
			host = "localhost"
		}
		where = net.JoinHostPort(host, "24")
	}
	return config.ListenAddress(where)
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeSocket != 0
}

// byLMTP delivers over a connection (RFC 2033).
func (c canary) byLMTP(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	client := smtp.NewClientLMTP(conn)
	defer client.Close()
	err := c.speak(client)
	if err != nil && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c canary) speak(client *smtp.Client) error {
	if err := client.Hello("localhost"); err != nil {
		return err
	}
	// No sender: nobody is to be told if it fails.
	if err := client.Mail("", nil); err != nil {
		return err
	}
	if err := client.Rcpt(mailbox(c.user), nil); err != nil {
		return taken(err, false)
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, c.text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return taken(err, true)
	}
	_ = client.Quit() // it is delivered
	return nil
}

// mailError is a refusal as an error.
type mailError struct{ refusedMail }

func (e *mailError) Error() string { return fmt.Sprintf("%d %s", e.code, e.text) }

// taken makes a refusal of a reply.
func taken(err error, data bool) error {
	var replies smtp.LMTPDataError // one for each recipient; there is one
	if errors.As(err, &replies) {
		for _, reply := range replies {
			err = reply
		}
	}
	var reply *smtp.SMTPError
	if !errors.As(err, &reply) {
		return err
	}
	text := reply.Message
	if code := reply.EnhancedCode; code[0] > 0 {
		text = fmt.Sprintf("%d.%d.%d %s", code[0], code[1], code[2], text)
	}
	return &mailError{refusedMail{code: reply.Code, text: text, data: data}}
}

// mailbox quotes the local part where it is no dot-string (RFC 5321 section
// 4.1.2).
func mailbox(user string) string {
	local, domain := user, ""
	if i := strings.LastIndexByte(user, '@'); i >= 0 {
		local, domain = user[:i], user[i:]
	}
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-/=?^_`{|}~.", r)
	}
	if local != "" && strings.TrimFunc(local, plain) == "" && !strings.HasPrefix(local, ".") &&
		!strings.HasSuffix(local, ".") && !strings.Contains(local, "..") {
		return user
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(local) + `"` + domain
}

// bySendmail hands the message to a mail server.
func (c canary) bySendmail(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, path, "-i", "-f", "<>", "--", c.user)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(c.text, "\r\n", "\n"))
	said := capped{left: 4 << 10}
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch line, _, _ := strings.Cut(strings.TrimSpace(said.kept.String()), "\n"); {
	case err != nil && context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil && line != "":
		return fmt.Errorf("%s: %w: %s", path, err, line)
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
