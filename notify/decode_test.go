package notify

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func count(n int64) *int64 { return &n }

func TestNotificationsAreDecoded(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       Notification
	}{
		{"as Dovecot sends it",
			`{"user":"alice@example.com","event":"messageNew","folder":"INBOX","imap-uidvalidity":1764154321,"imap-uid":4294967295,` +
				`"from":"\"Alice\" <a@example.com>","subject":"=?utf-8?q?Gr=C3=BC=C3=9Fe?=","snippet":"Hello\u0021","unseen":3}`,
			Notification{User: "alice@example.com", Event: "messageNew", Folder: "INBOX", UIDValidity: 1764154321, UID: 4294967295,
				From: `"Alice" <a@example.com>`, Subject: "Grüße", Snippet: "Hello!", Unseen: count(3)}},
		{"as Lua scripts send it", "\n { \"user\" : \"bob\" ,\t\"event\" : \"MessageNew\", \"imap-uid\": \"7\", \"imap-uidvalidity\":\"8\", \"subject\":null, \"from\": null, \"unread\": \"0\" } \r\n",
			Notification{User: "bob", Event: "messageNew", UID: 7, UIDValidity: 8, Unseen: count(0)}},
		{"unseen goes before unread", `{"user":"b","unread":1,"unseen":2}`, Notification{User: "b", Unseen: count(2)}},
		{"in whatever order", `{"user":"b","unseen":2,"unread":1}`, Notification{User: "b", Unseen: count(2)}},
		{"no unseen is a value", `{"user":"b","event":"MESSAGENEW","unseen":null}`, Notification{User: "b", Event: "messageNew"}},
		{"other events", `{"user":"b","event":"FlagsSet\u001b[2J"}`, Notification{User: "b", Event: "FlagsSet\uFFFD[2J"}},
		{"keys in escapes", `{"us\u0065r":"b"}`, Notification{User: "b"}},
		{"UTF-8 in every place", `{"user":"jörg","folder":"Entwürfe","snippet":"漢🕊 \ud83d\udd4a"}`, Notification{User: "jörg", Folder: "Entwürfe", Snippet: "漢🕊 🕊"}},
		{"no UTF-8 in texts", "{\"user\":\"b\",\"subject\":\"caf\xe9 \\\"\xe9\",\"snippet\":\"\xff\\ud800x\"}",
			Notification{User: "b", Subject: "caf\uFFFD \"\uFFFD", Snippet: "\uFFFD\uFFFDx"}},
		{"control characters in texts", `{"user":"b","from":"a\r\n\tb","subject":"\u0000\u001b]0;x\u0007\u009b","snippet":"one\n\n two\u2028three "}`,
			Notification{User: "b", From: "a b", Subject: "\uFFFD\uFFFD]0;x\uFFFD\uFFFD", Snippet: "one two three "}},
		{"a snippet is no header", `{"user":"b","snippet":"=?utf-8?q?a?="}`, Notification{User: "b", Snippet: "=?utf-8?q?a?="}},
		{"unknown members", "{\"user\":\"b\",\"User\":\"root\",\"x\":{\"y\":[1,\"}\\\"\xff\"]},\"\\u0007\":-1.5e3,\"n\":null}",
			Notification{User: "b", Fields: map[string]json.RawMessage{"User": []byte(`"root"`), "x": []byte("{\"y\":[1,\"}\\\"\uFFFD\"]}"), "\uFFFD": []byte("-1.5e3"), "n": []byte("null")}}},
		{"a long subject is cut between characters", `{"user":"b","subject":"a` + strings.Repeat("ü", 3000) + `"}`, Notification{User: "b", Subject: "a" + strings.Repeat("ü", 2047)}},
		{"the longest user", `{"user":"` + strings.Repeat("u", 1024) + `"}`, Notification{User: strings.Repeat("u", 1024)}},
		{"the deepest nesting", `{"user":"b","x":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`,
			Notification{User: "b", Fields: map[string]json.RawMessage{"x": []byte(strings.Repeat("[", 31) + strings.Repeat("]", 31))}}},
		{"zero is not told", `{"user":"b","imap-uid":0,"imap-uidvalidity":"0"}`, Notification{User: "b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Sent, c.want.Received = c.want.User, noon
			got, err := decode([]byte(c.body), noon)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("error %v, -want +got\n%s", err, diff)
			}
		})
	}
}

func TestMalformedBodiesAreRefused(t *testing.T) {
	for body, want := range map[string]error{
		``:                                          errNotJSON,
		`null`:                                      errNotJSON,
		`[{"user":"a"}]`:                            errNotJSON,
		`{`:                                         errNotJSON,
		`{"user"`:                                   errNotJSON,
		`{"user":"a"`:                               errNotJSON,
		`{"user":"a",}`:                             errNotJSON,
		`{"user":"a" "event":"b"}`:                  errNotJSON,
		`{"user":"a\`:                               errNotJSON,
		`{"user":"a\x"}`:                            errNotJSON,
		`{"user":"a\u12"}`:                          errNotJSON,
		"{\"user\":\"a\nb\"}":                       errNotJSON,
		`{user:"a"}`:                                errNotJSON,
		`{'user':'a'}`:                              errNotJSON,
		`{"user":"a","x":tru}`:                      errNotJSON,
		`{"user":"a","x":01}`:                       errNotJSON,
		`{"user":"a","x":}`:                         errNotJSON,
		`{"user":"a","x":[1,]}`:                     errNotJSON,
		`{"user":"a","x":[}`:                        errNotJSON,
		`{"user":"a","x":"\q"}`:                     errNotJSON,
		`{"user":"a","\q":1}`:                       errNotJSON,
		`{"user":"a","x":[{]}]}`:                    errNotJSON,
		"\xef\xbb\xbf" + `{"user":"a"}`:             errNotJSON,
		`{"user":"a"} {"user":"b"}`:                 errTrailing,
		`{"user":"a"}x`:                             errTrailing,
		`{}x`:                                       errTrailing,
		`{}`:                                        errNoUser,
		`{"user":""}`:                               errNoUser,
		`{"user":null}`:                             errNoUser,
		`{"User":"a"}`:                              errNoUser,
		`{"user":"a","user":"b"}`:                   errTwice,
		`{"user":"a","user":null}`:                  errTwice,
		`{"user":null,"user":"a"}`:                  errTwice,
		`{"user":"a","us\u0065r":"b"}`:              errTwice,
		`{"user":"a","imap-uid":1,"imap-uid":`:      errNotJSON,
		`{"user":"a","imap-uid":1,"imap-uid":1}`:    errTwice,
		`{"user":"a","x":1,"x":2}`:                  errTwice,
		`{"user":7}`:                                errWrongType,
		`{"user":["a"]}`:                            errWrongType,
		`{"user":"a","subject":{}}`:                 errWrongType,
		`{"user":"a","event":true}`:                 errWrongType,
		`{"user":"a","imap-uid":[1]}`:               errWrongType,
		`{"user":"a","imap-uid":-1}`:                errNumber,
		`{"user":"a","imap-uid":1.0}`:               errNumber,
		`{"user":"a","imap-uid":true}`:              errNumber,
		`{"user":"a","imap-uid":"+1"}`:              errNumber,
		`{"user":"a","imap-uid":""}`:                errNumber,
		`{"user":"a","imap-uid":4294967296}`:        errNumber,
		`{"user":"a","unseen":9223372036854775808}`: errNumber,
		"{\"user\":\"a\xff\"}":                      errUser,
		`{"user":"a\ud800"}`:                        errUser,
		`{"user":"a\ufffd"}`:                        errUser,
		`{"user":"a\u0000"}`:                        errUser,
		`{"user":"a\tb"}`:                           errUser,
		`{"user":"a\u007f"}`:                        errUser,
		`{"user":"a\u0085"}`:                        errUser,
		`{"user":"` + strings.Repeat("u", 1025) + `"}`:                errUser,
		`{"user":"a","folder":"` + strings.Repeat("f", 4097) + `"}`:   errLong,
		`{"user":"a","event":"` + strings.Repeat("e", 129) + `"}`:     errLong,
		`{"user":"a","x":` + strings.Repeat("[", 32):                  errDeep,
		`{"user":"a","x":` + strings.Repeat(`{"x":`, 10000):           errDeep,
		`{"x":` + strings.Repeat("[", 32) + strings.Repeat("]", 32):   errDeep,
		`{"user":"a","user":` + strings.Repeat("[", 40) + `1` + `]}}`: errDeep,
	} {
		if n, err := decode([]byte(body), noon); !errors.Is(err, want) || n.User != "" {
			t.Errorf("%.100s: user %q, error %v, want %v", body, n.User, err, want)
		}
	}
}

func TestUnknownMembersAreKeptWithinBounds(t *testing.T) {
	body := `{"user":"a"`
	for i := range 100 {
		body += fmt.Sprintf(`,"x%d":%d`, i, i)
	}
	n, err := decode([]byte(body+`}`), noon)
	if err != nil || len(n.Fields) != maxFields || string(n.Fields["x31"]) != "31" {
		t.Errorf("%d fields, error %v", len(n.Fields), err)
	}
	// Each byte that is no UTF-8 becomes three.
	n, err = decode([]byte(`{"user":"a","x":"`+strings.Repeat("\xffa", 6000)+`","y":"`+strings.Repeat("y", 17000)+`","z":"kept"}`), noon)
	if err != nil || n.Fields["x"] != nil || n.Fields["y"] != nil || string(n.Fields["z"]) != `"kept"` {
		t.Errorf("fields %.100q, error %v", n.Fields, err)
	}
}

func TestJSONOfNotificationsHasStableNamesAndNothingAbsent(t *testing.T) {
	n := Notification{User: "a", Sent: "a.MAC", Event: "messageNew", Folder: "INBOX", UIDValidity: 1, UID: 2, From: "f", Subject: "s", Snippet: "p",
		Unseen: count(0), Received: noon, Fields: map[string]json.RawMessage{"x": []byte(`[1]`)}}
	for want, n := range map[string]Notification{
		`{"user":"a","event":"messageNew","folder":"INBOX","uidvalidity":1,"uid":2,"from":"f","subject":"s","snippet":"p","unseen":0,"received_at":"2026-03-01T12:00:00Z","fields":{"x":[1]}}`: n,
		`{"user":"a","event":"messageNew","folder":"INBOX","uidvalidity":1,"uid":2,"unseen":0,"received_at":"2026-03-01T12:00:00Z"}`:                                                           n.Stripped(),
		`{"user":"b"}`: {User: "b"},
	} {
		if got, err := json.Marshal(n); err != nil || string(got) != want {
			t.Errorf("%s, error %v\nwant %s", got, err, want)
		}
	}
}

func TestKeysTellEventsApartAndNothingElse(t *testing.T) {
	base := Notification{User: "alice", Event: "messageNew", Folder: "INBOX", UIDValidity: 1, UID: 2}
	same := base
	same.Sent, same.Subject, same.Unseen, same.Received = "alice.MAC", "x", count(4), noon
	if base.Key() != same.Key() || len(base.Key()) != 32 {
		t.Errorf("keys %q, %q", base.Key(), same.Key())
	}
	// It identifies the event in webhooks too: it must not change with a release.
	if want := "44c52855d5da45cd9c6df131a32f6096"; base.Key() != want {
		t.Errorf("key %s, want %s", base.Key(), want)
	}
	keys := map[string]string{base.Key(): "base"}
	for name, change := range map[string]func(*Notification){
		"user":        func(n *Notification) { n.User = "alic" },
		"moved":       func(n *Notification) { n.User, n.Event = "alicem", "essageNew" },
		"event":       func(n *Notification) { n.Event = "x" },
		"folder":      func(n *Notification) { n.Folder = "inbox" },
		"uidvalidity": func(n *Notification) { n.UIDValidity = 2 },
		"uid":         func(n *Notification) { n.UID = 1 },
		"both":        func(n *Notification) { n.UIDValidity, n.UID = 2, 1 },
	} {
		n := base
		change(&n)
		if other, twice := keys[n.Key()]; twice {
			t.Errorf("%s has the key of %s", name, other)
		}
		keys[n.Key()] = name
	}
	for _, n := range []Notification{{User: "a", UID: 1}, {User: "a", UIDValidity: 1}} {
		if n.Key() != "" {
			t.Errorf("%+v has a key", n)
		}
	}
}
