package doctor

import (
	"cmp"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dovepush/config"
	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
)

// edits are changes of Dovecot's settings, for each version.
type edits map[dovecot.Version]func(settings string) string

// added appends text to the settings.
func added(v23, v24 string) edits {
	return edits{
		dovecot.V23: func(s string) string { return s + v23 },
		dovecot.V24: func(s string) string { return s + v24 },
	}
}

// replaced replaces text that must be there.
func replaced(t *testing.T, old, new string) func(string) string {
	return func(s string) string {
		if !strings.Contains(s, old) {
			t.Fatalf("the settings do not hold %q", old)
		}
		return strings.ReplaceAll(s, old, new)
	}
}

func both(edit func(string) string) edits {
	return edits{dovecot.V23: edit, dovecot.V24: edit}
}

// told is what a walk must report of a link.
type told struct {
	link   string
	status Status
	words  []string
}

func say(link string, status Status, words ...string) told { return told{link, status, words} }

// fault is a fault of Dovecot's settings, and how doctor names it: by what can
// be seen from outside, and by reading the settings.
type fault struct {
	name       string
	edits      edits
	identity   string // of alice's registration; empty: her name
	outside    []told
	inside     []told
	fault      Fault // of the walk without settings
	acceptTime time.Duration
}

func faults(t *testing.T, c *chain) []fault {
	hang, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hang.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	nothing := closed.Addr().String()
	const noDict23, noDict24 = "mail_attribute_dict = file:%h/dovecot-attributes\n", "mail_attribute {\n  dict file {\n    path = %{home}/dovecot-attributes\n  }\n}\n"
	identities := edits{
		dovecot.V23: replaced(t, "/notify\n", "/notify user_from_metadata\n"),
		dovecot.V24: func(s string) string {
			return s + "push_notification ox {\n push_notification_ox_user_from_metadata = yes\n}\n"
		},
	}
	return []fault{{
		name:    "METADATA off",
		edits:   added("protocol imap {\n imap_metadata = no\n}\n", "protocol imap {\n imap_metadata = no\n}\n"),
		outside: []told{say("metadata", Fail, "imap_metadata = yes"), say("entry", Skip), say("canary", Skip)},
		inside:  []told{say("dovecot settings", Fail, "imap_metadata is off")},
		fault:   Unavailable,
	}, {
		name:    "no dict",
		edits:   edits{dovecot.V23: replaced(t, noDict23, ""), dovecot.V24: replaced(t, noDict24, "")},
		outside: []told{say("metadata", Fail, "mail_attribute"), say("canary", Skip)},
		inside:  []told{say("dovecot settings", Fail, "no dict")},
		fault:   Unavailable,
	}, {
		name:    "plugin missing in lmtp",
		edits:   added("protocol lmtp {\n mail_plugins =\n}\n", "protocol lmtp {\n mail_plugins {\n  push_notification = no\n }\n}\n"),
		outside: []told{say("canary", OK), say("notification", Fail, "most likely", "push_notification"), say("notification", Fail, "another host or port"), say("proof", Skip)},
		inside:  []told{say("dovecot settings", Fail, "push_notification is not loaded", "protocol lmtp"), say("notification", Fail, "push_notification is not loaded")},
		fault:   Unavailable,
	}, {
		name:    "wrong path",
		edits:   both(replaced(t, "/v1/notify", "/v2/notify")),
		outside: []told{say("notification", Fail, "another path", "404", "and not /preliminary/http-notify/v1/notify")},
		inside:  []told{say("dovecot settings", Fail, "/v2/notify")},
		fault:   Unavailable,
	}, {
		name:    "wrong password",
		edits:   both(replaced(t, notifyPassword+"@", "other@")),
		outside: []told{say("notification", Fail, "wrong user name or password", "401")},
		inside:  []told{say("dovecot settings", Fail, "another password than notify.password")},
		fault:   Refused,
	}, {
		name:    "wrong port",
		edits:   both(replaced(t, "@"+c.endpoint.address, "@"+nothing)),
		outside: []told{say("notification", Fail, "most likely"), say("notification", Fail, "another host or port")},
		inside:  []told{say("dovecot settings", Fail, "leads to http://"+nothing), say("notification", Fail, "leads to http://"+nothing)},
		fault:   Unavailable,
	}, {
		name:       "HTTP time-out",
		edits:      both(replaced(t, "@"+c.endpoint.address, "@"+hang.Addr().String())),
		outside:    []told{say("notification", Fail, "no notification came, and the delivery took", "does not answer"), say("notification", Fail, "another host or port")},
		inside:     []told{say("notification", Fail, "does not answer"), say("notification", Fail, "leads to http://"+hang.Addr().String())},
		fault:      Unavailable,
		acceptTime: 6 * time.Second, // 2.4 would keep us for 60
	}, {
		name:     "user_from_metadata missing",
		edits:    both(func(s string) string { return s }),
		identity: "7@1",
		outside:  []told{say("notification", Fail, "came for alice", "identity is 7@1", "user_from_metadata"), say("proof", Skip)},
		fault:    Unavailable,
	}, {
		name:    "user_from_metadata superfluous",
		edits:   identities,
		outside: []told{say("notification", OK)}, // the name and the identity are the same
		inside:  []told{say("dovecot settings", Warn, "user_from_metadata is set", "somebody else's")},
	}, {
		name:     "user_from_metadata superfluous, and an identity",
		edits:    identities,
		identity: "7@1",
		outside:  []told{say("notification", Warn, "carries the identity 7@1", "identity_key_file"), say("proof", OK)},
	}, {
		name:    "LMTP does not know the user",
		edits:   added("protocol lmtp {\n auth_username_format = nobody-%Lu\n}\n", "protocol lmtp {\n auth_username_format = nobody-%{user|lower}\n}\n"),
		outside: []told{say("canary", Fail, "LMTP refuses alice: 550", "doveadm user alice"), say("notification", Skip)},
		fault:   Refused,
	}}
}

func TestEveryFaultOfDovecotsSettingsIsNamed(t *testing.T) {
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel() // it waits more than it works
			c := newChain(t)
			c.start(t, v, dovecot.Options{})
			c.register(t, "alice")
			for _, f := range faults(t, c) {
				edit, applies := f.edits[v]
				if !applies {
					continue
				}
				t.Run(f.name, func(t *testing.T) { c.checkFault(t, f, edit) })
			}
		})
	}
}

func (c *chain) checkFault(t *testing.T, f fault, edit func(string) string) {
	c.change(t, edit)
	if identity := cmp.Or(f.identity, "alice"); identity != c.identity { // the settings let doveadm write it
		c.register(t, identity)
	}
	o := c.options(t, c.byIMAP()+c.rest())
	o.LMTP, o.Wait.Accept = c.server.LMTP, f.acceptTime
	w := run(t, o)
	for _, want := range f.outside {
		w.has(t, want.link, want.status, want.words...)
	}
	if w.Verdict.Fault != f.fault {
		t.Errorf("the gravest fault is %d, want %d", w.Verdict.Fault, f.fault)
	}
	if len(f.inside) == 0 {
		return
	}
	o.Doveconf = c.doveconf(t)
	w = run(t, o)
	for _, want := range f.inside {
		w.has(t, want.link, want.status, want.words...)
	}
}

// On 2.4, %h is a name like any other: the path is relative, and each process
// looks from where it stands. Without a home imap stands in /.
func TestALetterVariableInTheDictsPathIsNamed(t *testing.T) {
	c := newChain(t)
	c.start(t, dovecot.V24, dovecot.Options{})
	c.change(t, replaced(t, "path = %{home}/dovecot-attributes", "path = %h/dovecot-attributes"))
	text := c.byIMAP() + c.rest()

	o := c.options(t, text)
	o.User, o.Deliver = "bob", false // who has no home yet
	run(t, o).has(t, "probe", Fail, "SERVERBUG", "reading works, writing does not", "%{home}", "%h")

	if err := c.server.Deliver(t.Context(), "alice", "x@example.org", "x", "x"); err != nil { // now she has a home
		t.Fatal(err)
	}
	conf, err := config.Parse([]byte(text), filepath.Join(c.dir, "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := newIMAP(0, &conf.Servers[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Update(t.Context(), "alice", func(imapmeta.Value) imapmeta.Change { return imapmeta.Set("user=alice") }); err != nil {
		t.Fatal(err)
	}
	c.row(t, "alice", "user=alice")
	o = c.options(t, text)
	o.LMTP = c.server.LMTP
	w := run(t, o)
	w.has(t, "entry", OK)
	w.has(t, "doveadm entry", Fail, "IMAP and DoveAdm read different entries", "%h")
	w.has(t, "notification", Fail, "IMAP and LMTP do not read the same entry")
	o.Doveconf = c.doveconf(t)
	w = run(t, o)
	w.has(t, "dovecot settings", Fail, "has %h", "%{home}")
	w.has(t, "notification", Fail, "has %h")
}
