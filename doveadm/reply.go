package doveadm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"dovepush/imapmeta"
)

const (
	// maxReply bounds what is kept of one reply, in bytes: Dovecot may hold
	// values of any size that other clients have written, and an entry that is
	// longer than this is not ours.
	maxReply = 256 << 10
	// maxBody bounds an answer, beyond maxReply for each of its commands.
	maxBody = 1 << 20
)

// statusResponse is the status of replies that are no errors.
const statusResponse = "doveadmResponse"

// reply is what came back for one command.
type reply struct {
	status   string // statusResponse, or an error's type
	exitCode int    // if the type is "exitCode"
	data     json.RawMessage
	tag      string
	tagged   bool
	long     bool // longer than maxReply: only that is known of it
}

var (
	errNotJSON = errors.New("not a list of replies")
	errCut     = errors.New("the answer ends in the middle")
	errLong    = errors.New("the answer is too long")
)

// readReplies reads an answer and passes on each reply as soon as it is whole.
//
// It looks for replies only, and not for what stands between them: Dovecot 2.3
// leaves the comma out after a reply to a command that it did not run,
// `["error",{"type":"unknownMethod","exitCode":0},"1"]["doveadmResponse",...]`
// (doveadm_http_server_command_execute returns before it), and older ones after
// replies that the command printed itself.
func readReplies(in io.Reader, each func(reply)) error {
	br := bufio.NewReader(in)
	if b, err := next(br); err != nil || b != '[' {
		return notJSON(err)
	}
	for {
		switch b, err := next(br); {
		case err != nil:
			return cut(err)
		case b == ']':
			if b, err = next(br); err == nil {
				return fmt.Errorf("%w: %q after its end", errNotJSON, b)
			} else if err != io.EOF {
				return err
			}
			return nil
		case b != '[':
			return fmt.Errorf("%w: %q where a reply should be", errNotJSON, b)
		}
		text, long, err := element(br)
		if long { // wherever it ends
			each(reply{long: true})
		}
		if err != nil {
			return cut(err)
		}
		if long {
			continue
		}
		r, err := parseReply(text)
		if err != nil {
			return fmt.Errorf("%w: %w", errNotJSON, err)
		}
		each(r)
	}
}

func notJSON(err error) error {
	switch {
	case err == io.EOF:
		return fmt.Errorf("%w: it is empty", errNotJSON)
	case err != nil:
		return err
	}
	return errNotJSON
}

// cut gives an end that comes too early its name.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errCut
	}
	return err
}

// next returns the next byte that is neither a blank nor a comma.
func next(br *bufio.Reader) (byte, error) {
	for {
		b, err := br.ReadByte()
		if err != nil {
			return 0, err
		}
		switch b {
		case ' ', '\t', '\r', '\n', ',':
			continue
		}
		return b, nil
	}
}

// element reads the rest of an array whose "[" was read, up to the "]" that
// belongs to it. Of one that is longer than maxReply only that is returned.
func element(br *bufio.Reader) (text []byte, long bool, err error) {
	text = append(make([]byte, 0, 128), '[')
	depth, quoted, escaped := 1, false, false
	for depth > 0 {
		b, err := br.ReadByte()
		if err != nil {
			return nil, long, err
		}
		if len(text) < maxReply {
			text = append(text, b)
		} else {
			long = true
		}
		switch {
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = b == '\\', b != '"'
		case b == '"':
			quoted = true
		case b == '[' || b == '{':
			depth++
		case b == ']' || b == '}':
			depth--
		}
	}
	return text, long, nil
}

// parseReply reads ["doveadmResponse", data, "tag"] or
// ["error", {"type": type, "exitCode": n}, "tag"]. Dovecot leaves the tag out
// if it has lost it.
func parseReply(text []byte) (reply, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(text, &parts); err != nil {
		return reply{}, err
	}
	if len(parts) < 2 {
		return reply{}, fmt.Errorf("a reply of %d parts", len(parts))
	}
	var r reply
	if err := json.Unmarshal(parts[0], &r.status); err != nil {
		return r, err
	}
	r.data = parts[1]
	if len(parts) > 2 {
		r.tagged = json.Unmarshal(parts[2], &r.tag) == nil && r.tag != ""
	}
	switch r.status {
	case statusResponse:
		return r, nil
	case "error":
		var e struct {
			Type     string
			ExitCode int
		}
		if err := json.Unmarshal(r.data, &e); err != nil {
			return r, err
		}
		r.status, r.exitCode = clip(e.Type), e.ExitCode
		if r.status == statusResponse || r.status == "" {
			return r, fmt.Errorf("an error of type %q", r.status)
		}
		return r, nil
	}
	return r, fmt.Errorf("a reply of type %q", clip(r.status))
}

// value returns what a reply to get says that the entry holds. Absent and empty
// are told the same way: src/doveadm/doveadm-mail-mailbox-metadata.c prints ""
// for "not found".
func (r *reply) value() (imapmeta.Value, error) {
	var list []struct{ Value *string }
	if r.long {
		return "", &imapmeta.Error{Kind: imapmeta.User, Op: opGet,
			Err: fmt.Errorf("the entry holds more than %d bytes: dovepush did not write that", maxReply)}
	}
	if err := json.Unmarshal(r.data, &list); err != nil || len(list) != 1 || list[0].Value == nil {
		return "", &imapmeta.Error{Kind: imapmeta.Retry, Op: opGet, Status: statusResponse,
			Err: fmt.Errorf("the reply %q is not a value", clip(string(r.data)))}
	}
	return imapmeta.Value(*list[0].Value), nil
}

// match finds the replies to n commands, by their tags. Replies without a tag
// count by their place, if there is one for each command. Two different replies
// to one command are none: which of them is true is not known.
func match(replies []reply, n int) []*reply {
	found := make([]*reply, n)
	doubtful := make([]bool, n)
	for at := range replies {
		r, i := &replies[at], at
		if r.tagged {
			var err error
			if i, err = strconv.Atoi(r.tag); err != nil || strconv.Itoa(i) != r.tag {
				continue
			}
		} else if len(replies) != n {
			continue
		}
		if i < 0 || i >= n {
			continue
		}
		if found[i] != nil && !found[i].equals(r) {
			doubtful[i] = true
		}
		found[i] = r
	}
	for i := range found {
		if doubtful[i] {
			found[i] = nil
		}
	}
	return found
}

func (r *reply) equals(other *reply) bool {
	return r.status == other.status && r.exitCode == other.exitCode && r.long == other.long && string(r.data) == string(other.data)
}

// bounded reads at most left bytes, and then fails.
type bounded struct {
	r      io.Reader
	left   int64
	failed error // what it returned last
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.failed = errLong
		return 0, errLong
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	b.failed = err
	return n, err
}

// clip bounds foreign text in messages.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.ToValidUTF8(s, "")
}
