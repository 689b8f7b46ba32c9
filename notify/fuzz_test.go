package notify

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzNotification: whatever is sent, what is accepted is JSON with one user,
// is bounded, can be printed, and says the same after a round trip as JSON.
func FuzzNotification(f *testing.F) {
	for _, body := range []string{
		`{"user":"alice","event":"messageNew","folder":"INBOX","imap-uidvalidity":1,"imap-uid":2,"from":"\"A\" <a@b>","subject":"=?utf-8?q?=C3=BC?=","snippet":"x","unseen":3}`,
		`{"user":"a","x":[{"y":"}\""},null,-1e5],"\u0000":"\ud800","unread":"7"}`, "{\"user\":\"a\",\"k\xff\":\"\xff\"}", `{"us\u0065r":"a","user":"b"}`, `{} {}`, `[]`,
		`{"user":"a","from":"=?gb2312?b?xOO6ww==?= =?iso-2022-jp?q?=1B$B?=","subject":"=?=?utf-8?q??="}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := decode(body, noon)
		if err != nil {
			return
		}
		var theirs map[string]any
		if err := json.Unmarshal(body, &theirs); err != nil {
			t.Fatalf("accepted, and yet: %v", err)
		}
		if theirs["user"] != n.User || n.Sent != n.User || n.User == "" {
			t.Errorf("%q accepted as %q", theirs["user"], n.User)
		}
		sum := 0
		for k, v := range n.Fields {
			sum += len(k) + len(v)
			if memberOf([]byte(k)) != memberOther {
				t.Errorf("%q is kept as unknown", k)
			}
		}
		if len(n.Fields) > maxFields || sum > maxExtra {
			t.Errorf("%d fields of %d bytes", len(n.Fields), sum)
		}
		for _, text := range []string{n.User, n.Event, n.Folder, n.From, n.Subject, n.Snippet} {
			if len(text) > maxFolder || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
				t.Errorf("text %q", text)
			}
		}
		sent, err := json.Marshal(n)
		if err != nil || !utf8.Valid(sent) {
			t.Fatalf("%q, error %v", sent, err)
		}
		var back Notification
		if err := json.Unmarshal(sent, &back); err != nil || back.User != n.User || back.Subject != n.Subject || len(back.Fields) != len(n.Fields) {
			t.Errorf("%+v came back as %+v, error %v", n, back, err)
		}
	})
}
