package dovecot

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net"
	"net/textproto"
	"strings"
	"time"
)

// Deliver brings one message to the user's INBOX over LMTP, as a mail server
// would. When it returns, Dovecot has stored the message, and the ox driver
// has sent its notification or given up. Dovecot's refusal is a
// *textproto.Error: besides unknown users it refuses names that hold the master
// separator or control characters, and 2.3 those that are not ASCII.
func (s *Server) Deliver(ctx context.Context, user, from, subject, body string) error {
	if err := s.deliver(ctx, user, from, subject, body); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("deliver to %q: %w", user, err)
	}
	return nil
}

func (s *Server) deliver(ctx context.Context, user, from, subject, body string) error {
	for what, text := range map[string]string{"user": user, "sender": from} {
		if strings.ContainsAny(text, "\r\n\x00") {
			return fmt.Errorf("line break or NUL in the %s", what)
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.LMTP)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	c := textproto.NewConn(conn)
	defer c.Close()
	if _, _, err := c.ReadResponse(220); err != nil {
		return err
	}
	for _, step := range []struct {
		line string
		code int
	}{
		{"LHLO localhost", 250},
		{"MAIL FROM:<" + from + ">", 250},
		{"RCPT TO:<" + mailbox(user) + ">", 250},
		{"DATA", 354},
	} {
		if err := c.PrintfLine("%s", step.line); err != nil {
			return err
		}
		if _, _, err := c.ReadResponse(step.code); err != nil {
			return err
		}
	}
	w := c.DotWriter()
	_, _ = fmt.Fprintf(w, "From: %s\r\nTo: undisclosed-recipients:;\r\nSubject: %s\r\nDate: %s\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
		from, mime.QEncoding.Encode("utf-8", subject), time.Now().Format(time.RFC1123Z))
	_, _ = io.WriteString(w, body)
	if err := w.Close(); err != nil {
		return err
	}
	if _, _, err := c.ReadResponse(250); err != nil {
		return err
	}
	_ = c.PrintfLine("QUIT")
	return nil
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
