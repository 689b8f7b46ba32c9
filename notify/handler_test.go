package notify

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

const mail = `{"user":"alice","event":"messageNew","folder":"INBOX","imap-uidvalidity":1,"imap-uid":2,"from":"private-from","subject":"private-subject","snippet":"private-snippet","unseen":1}`

func TestANotificationIsAnsweredAndHandedOn(t *testing.T) {
	e := start(t)
	got := e.put(http.StatusOK, mail)
	if got.body != "" || got.header.Get("Content-Length") != "0" {
		t.Errorf("answer %+v", got)
	}
	e.do(e.request(http.MethodPost, e.url(), strings.NewReader(`{"user":"bob"}`), "Content-Type", ""))
	e.await("two notifications", func() bool { return len(e.published) == 2 })
	if a, b := e.published[0], e.published[1]; a.User != "alice" || a.Sent != "alice" || a.Subject != "private-subject" || !a.Received.Equal(noon) || b.User != "bob" {
		t.Errorf("published %+v", e.published)
	}
	e.awaitResults(Accepted, Accepted)
	if log := e.log.String(); strings.Contains(log, "private") || strings.Contains(log, "secret") {
		t.Errorf("log %s", log)
	}
}

func TestRefusals(t *testing.T) {
	long := `{"user":"a","x":"` + strings.Repeat("x", maxBody) + `"}`
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		reason                   Reason
	}{
		{"other path", "PUT", "/", mail, nil, 404, WrongPath},
		{"longer path", "PUT", notifyPath + "/", mail, nil, 404, WrongPath},
		{"other path, no password", "PUT", "/x", mail, []string{"Authorization", ""}, 404, WrongPath},
		{"no password", "PUT", notifyPath, mail, []string{"Authorization", ""}, 401, WrongCredentials},
		{"wrong password", "PUT", notifyPath, mail, []string{"Authorization", basic("dovecot", "secre")}, 401, WrongCredentials},
		{"wrong name", "PUT", notifyPath, mail, []string{"Authorization", basic("dovecos", "secret")}, 401, WrongCredentials},
		{"name and password swapped", "PUT", notifyPath, mail, []string{"Authorization", basic("secret", "dovecot")}, 401, WrongCredentials},
		{"colon moved", "PUT", notifyPath, mail, []string{"Authorization", basic("dove", "cot:secret")}, 401, WrongCredentials},
		{"empty password", "PUT", notifyPath, mail, []string{"Authorization", basic("dovecot", "")}, 401, WrongCredentials},
		{"no base64", "PUT", notifyPath, mail, []string{"Authorization", "Basic !"}, 401, WrongCredentials},
		{"bearer", "PUT", notifyPath, mail, []string{"Authorization", "Bearer secret"}, 401, WrongCredentials},
		{"two passwords", "PUT", notifyPath, mail, []string{"Authorization", basic("dovecot", "secret") + "|" + basic("dovecot", "x")}, 401, WrongCredentials},
		{"wrong everything", "GET", notifyPath, long, []string{"Authorization", "", "Content-Type", "x"}, 401, WrongCredentials},
		{"GET", "GET", notifyPath, "", nil, 405, WrongMethod},
		{"DELETE", "DELETE", notifyPath, mail, nil, 405, WrongMethod},
		{"text", "PUT", notifyPath, mail, []string{"Content-Type", "text/plain"}, 415, WrongMediaType},
		{"form", "PUT", notifyPath, mail, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, WrongMediaType},
		{"no media type", "PUT", notifyPath, mail, []string{"Content-Type", ";;"}, 415, WrongMediaType},
		{"image", "PUT", notifyPath, mail, []string{"Content-Type", "image/x+json"}, 415, WrongMediaType},
		{"Latin 1", "PUT", notifyPath, mail, []string{"Content-Type", "application/json; charset=iso-8859-1"}, 415, WrongMediaType},
		{"compressed", "PUT", notifyPath, mail, []string{"Content-Encoding", "gzip"}, 415, WrongMediaType},
		{"too large", "PUT", notifyPath, long, nil, 413, TooLarge},
		{"empty", "PUT", notifyPath, "", nil, 400, Malformed},
		{"no JSON", "PUT", notifyPath, "x", nil, 400, Malformed},
		{"no user", "PUT", notifyPath, "{}", nil, 400, Malformed},
		{"user twice", "PUT", notifyPath, `{"user":"private-a","user":"private-b"}`, nil, 400, Malformed},
		{"forged", "PUT", notifyPath, `{"user":"private-mallory"}`, nil, 403, Forged},
		{"not kept", "PUT", notifyPath, `{"user":"full"}`, nil, 503, Spool},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := start(t, func(o *Options) {
				o.Verify = func(sent string) (string, error) {
					if sent == "private-mallory" {
						return "", errors.New("no signature")
					}
					return sent, nil
				}
				o.Accept = func(_ context.Context, n Notification) error {
					if n.User == "full" {
						return errors.New("disk full")
					}
					return nil
				}
			})
			got := e.do(e.request(c.method, "http://"+e.addr+c.path, strings.NewReader(c.body), c.header...))
			if got.status != c.status || got.body == "" {
				t.Errorf("answer %+v, want %d", got, c.status)
			}
			for name, status := range map[string]int{"WWW-Authenticate": 401, "Allow": 405, "Retry-After": 503} {
				if (got.header.Get(name) != "") != (got.status == status) {
					t.Errorf("%s: %q with status %d", name, got.header.Get(name), got.status)
				}
			}
			e.awaitResults(c.reason.result())
			e.await("refusal", func() bool { return len(e.refused) == 1 })
			r := e.refused[0]
			if !r.At.Equal(noon) || r.Remote != "127.0.0.1" || r.Status != c.status || r.Reason != c.reason || r.Detail == "" || len(e.published) != 0 {
				t.Errorf("refusal %+v, published %+v", r, e.published)
			}
			if all := e.log.String() + got.body + r.Detail; strings.Contains(all, "secret") || strings.Contains(all, "private") {
				t.Errorf("said too much: %s", all)
			}
			found := false
			for _, result := range Results() {
				found = found || result == c.reason.result()
			}
			if !found {
				t.Errorf("result %q is not listed", c.reason.result())
			}
		})
	}
}

func TestMediaTypesThatAreJSON(t *testing.T) {
	e := start(t)
	for _, kind := range []string{"", "application/json", "APPLICATION/JSON;charset=\"UTF-8\"", "application/vnd.ox+json; charset=utf8", "application/json; x=y"} {
		e.put(http.StatusOK, `{"user":"a"}`, "Content-Type", kind)
	}
	e.put(http.StatusOK, `{"user":"a"}`, "Content-Encoding", "identity")
}

func TestThePasswordCanChangeWhileItRuns(t *testing.T) {
	var password atomic.Value
	password.Store("secret")
	var required atomic.Bool
	required.Store(true)
	e := start(t, func(o *Options) {
		o.Credentials = func() (string, string, bool) { return "dovecot", password.Load().(string), required.Load() }
	})
	e.put(http.StatusOK, mail)
	password.Store("new")
	e.put(http.StatusUnauthorized, mail)
	e.put(http.StatusOK, mail, "Authorization", basic("dovecot", "new"))
	password.Store("") // its file was emptied: nobody has that one
	e.put(http.StatusUnauthorized, mail, "Authorization", basic("dovecot", ""))
	required.Store(false)
	e.put(http.StatusOK, mail, "Authorization", "")
}

func TestVerifyGivesTheName(t *testing.T) {
	e := start(t, func(o *Options) {
		o.Verify = func(sent string) (string, error) {
			name, _, signed := strings.Cut(sent, "~")
			if !signed {
				return "", errors.New("unsigned")
			}
			return name, nil
		}
	})
	e.put(http.StatusOK, `{"user":"alice~1","imap-uid":1,"imap-uidvalidity":1}`)
	e.put(http.StatusForbidden, `{"user":"alice","imap-uid":2,"imap-uidvalidity":1}`)
	e.put(http.StatusOK, `{"user":"alice~2","imap-uid":1,"imap-uidvalidity":1}`) // the same event, after a change of keys
	e.awaitResults(Accepted, "forged", Duplicate)
	e.await("notification", func() bool { return len(e.published) == 1 })
	if n := e.published[0]; n.User != "alice" || n.Sent != "alice~1" {
		t.Errorf("%+v", n)
	}
}

func TestThePublisherIsNotWaitedFor(t *testing.T) {
	hold := make(chan struct{})
	e := start(t, func(o *Options) { o.Publish = func(Notification) { <-hold } })
	defer close(hold)
	e.put(http.StatusOK, mail) // comes back although Publish does not
	e.awaitResults(Accepted)
}

func TestPanicsAreAnsweredAndLogged(t *testing.T) {
	var calm atomic.Bool
	e := start(t, func(o *Options) {
		o.Accept = func(context.Context, Notification) error {
			if !calm.Load() {
				panic("a defect")
			}
			return nil
		}
	})
	e.put(http.StatusInternalServerError, mail)
	calm.Store(true)
	e.put(http.StatusOK, mail) // it was not accepted, and does not wait for ever
	e.awaitResults("internal", Accepted)
	if log := e.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "a defect") || strings.Contains(log, "private") {
		t.Errorf("log %s", log)
	}
	late := start(t, func(o *Options) { o.Publish = func(Notification) { panic("too late") } })
	late.put(http.StatusOK, mail)
	late.put(http.StatusOK, mail)
	late.awaitResults(Accepted, Duplicate)
}
