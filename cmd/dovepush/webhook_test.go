package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"dovepush/internal/dovecot"
)

// hookServer is somebody who wants to be told.
type hookServer struct {
	*httptest.Server
	t      *testing.T
	key    []byte
	status atomic.Int64
	mu     sync.Mutex
	got    []string // bodies, each once it was signed right and answered 200
}

func newHookServer(t *testing.T) *hookServer {
	h := &hookServer{t: t, key: []byte(strings.Repeat("k", 32))}
	h.status.Store(200)
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hookServer) secret() string { return "whsec_" + base64.StdEncoding.EncodeToString(h.key) }

// ServeHTTP verifies as https://www.standardwebhooks.com has it.
func (h *hookServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		h.t.Error(err)
	}
	mac := hmac.New(sha256.New, h.key)
	fmt.Fprintf(mac, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body)
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
		h.t.Errorf("signature %q, want %q", r.Header.Get("webhook-signature"), want)
	}
	status := int(h.status.Load())
	if status == 200 {
		h.mu.Lock()
		h.got = append(h.got, string(body))
		h.mu.Unlock()
	}
	w.WriteHeader(status)
}

// has waits until so many came, and returns them.
func (h *hookServer) has(n int) (all []string) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%d notifications are forwarded", n), func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if all = append([]string(nil), h.got...); len(all) < n {
			return fmt.Errorf("%d came", len(all))
		}
		return nil
	})
	return all
}

func (h *hookServer) settings(name, more string) string {
	return fmt.Sprintf("[[webhook]]\nname = %q\nurl = %q\nsecret_file = \"hook.secret\"\nretry_initial = \"50ms\"\nretry_max = \"200ms\"\n%s", name, h.URL, more)
}

func TestNotificationsAreForwardedToWebhooks(t *testing.T) {
	o := dovecot.Options{Users: []dovecot.User{{Name: "alice", Password: "x"}}}
	everyNotified(t, o, func(t *testing.T, w notified) {
		whole, stripped := newHookServer(t), newHookServer(t)
		w.write("hook.secret", whole.secret()+"\n")
		settings := w.read("config.toml") + whole.settings("whole", "") + stripped.settings("bare", "strip = true\ngive_up_after = \"1ms\"\n")
		w.write("config.toml", settings)
		r := w.start()
		w.run(exitOK, "register", "alice")

		stripped.status.Store(503)
		w.deliver("alice", "First secret")
		if got := whole.has(1)[0]; !strings.Contains(got, `"user":"alice"`) || !strings.Contains(got, `"subject":"First secret"`) {
			t.Error(got)
		}
		// What was not taken in time is a dead letter, which can be sent again.
		eventually(t, "the notification is given up", func() error {
			if out := w.run(exitOK, "webhooks", "bare", "--dead"); !strings.Contains(out, "status 503") || !strings.Contains(out, "alice") || strings.Contains(out, "First") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		r.shows(`dovepush_webhook_dead{webhook="bare"} 1`, `dovepush_webhook_waiting{webhook="bare"} 0`, `dovepush_webhook_dead{webhook="whole"} 0`,
			`dovepush_webhook_deliveries_total{delivery="delivered",webhook="whole"} 1`, `dovepush_webhook_deliveries_total{delivery="failed",webhook="bare"} 1`)
		stripped.status.Store(200)
		w.write("config.toml", strings.Replace(settings, `give_up_after = "1ms"`, `give_up_after = "1h"`, 1))
		r.reload()
		if out := w.run(exitOK, "webhooks", "bare", "--revive"); !strings.Contains(out, "1 dead letters wait") {
			t.Error(out)
		}
		w.deliver("alice", "Second secret") // which also has the service look into the spool
		for _, got := range stripped.has(2) {
			if strings.Contains(got, "secret") || strings.Contains(got, "example.org") || !strings.Contains(got, `"uid":`) {
				t.Errorf("not stripped: %s", got)
			}
		}
		// Nothing of the mail stays once it is delivered, and nobody else can read the spool.
		whole.has(2)
		eventually(t, "the spool holds nothing of the mail", func() error {
			for _, name := range []string{"spool.db", "spool.db-wal", "spool.db-shm"} {
				path := filepath.Join(w.dir, name)
				text, err := os.ReadFile(path)
				if err != nil && !os.IsNotExist(err) {
					return err
				}
				if strings.Contains(string(text), "secret") {
					return fmt.Errorf("%s has it", name)
				}
				if info, err := os.Stat(path); err == nil && info.Mode().Perm() != 0o600 {
					t.Errorf("%s has mode %v", name, info.Mode())
				}
			}
			return nil
		})

		// While nobody can be told, all waits; also for a service that is killed.
		whole.status.Store(500)
		for i := range 3 {
			w.deliver("alice", fmt.Sprintf("Waiting %d", i))
		}
		r.kill(syscall.SIGKILL)
		var waiting struct{ Waiting int }
		if err := json.Unmarshal([]byte(w.run(exitOK, "webhooks", "whole", "--json")), &waiting); err != nil || waiting.Waiting != 3 {
			t.Errorf("%+v (%v)", waiting, err)
		}
		whole.status.Store(200)
		w.start().shows(`dovepush_webhook_waiting{webhook="whole"} 0`, `dovepush_webhook_up{webhook="whole"} 1`)
		for i, got := range whole.has(5)[2:] {
			if !strings.Contains(got, fmt.Sprintf("Waiting %d", i)) {
				t.Errorf("%d: %s", i, got)
			}
		}
	})
}

func TestAWebhookWithoutAUsableSecretIsRefused(t *testing.T) {
	w := &notified{site: &site{t: t, dir: t.TempDir()}}
	w.write("config.toml", "[[server]]\naddress = \"127.0.0.1:1\"\n[registry]\npath = \"r.db\"\n[api]\nlisten = \"\"\n[notify]\nlisten = \"127.0.0.1:0\"\n"+
		"[[webhook]]\nname = \"app\"\nurl = \"http://127.0.0.1:1\"\nsecret_file = \"hook.secret\"\n")
	w.write("hook.secret", "hunter2\n")
	if out := w.run(exitConfig, "serve"); !strings.Contains(out, "webhook[0].secret_file: the secret does not begin with whsec_") || strings.Contains(out, "hunter2") {
		t.Error(out)
	}
	if out := w.run(exitConfig, "config", "check"); !strings.Contains(out, "webhook[0].secret_file: the secret does not begin with whsec_") {
		t.Error(out)
	}
	w.write("hook.secret", newHookServer(t).secret()+"\n")
	w.write("identity.key", "short\n")
	w.write("config.toml", "identity_key_file = \"identity.key\"\n"+w.read("config.toml"))
	if out := w.run(exitConfig, "config", "check"); !strings.Contains(out, "identity_key_file: 5 characters are too few") || strings.Contains(out, "short\n") {
		t.Error(out)
	}
	if out := w.run(exitUsage, "webhooks", "--revive"); !strings.Contains(out, "name the webhook") {
		t.Error(out)
	}
	if out := w.run(exitUsage, "webhooks", "nobody"); !strings.Contains(out, `no webhook "nobody"`) {
		t.Error(out)
	}
}

// Signed identities: who writes his own entry cannot speak as somebody else.
func TestAForgedIdentityIsRefused(t *testing.T) {
	o := dovecot.Options{Users: []dovecot.User{{Name: "alice", Password: "x"}, {Name: "mallory", Password: "x"}}, UserFromMetadata: true}
	everyNotified(t, o, func(t *testing.T, w notified) {
		keyA, keyB := strings.Repeat("a", 32), strings.Repeat("b", 32)
		plain := w.read("config.toml")
		w.run(exitOK, "register", "alice") // before there was a key
		w.write("identity.key", keyA+"\n")
		w.write("config.toml", "identity_key_file = \"identity.key\"\nidentity_accept_unsigned = true\n"+plain)
		r := w.start()
		v := w.watch(r, 1)
		w.deliver("alice", "Unsigned still")
		v.wants("alice", "Unsigned still")

		w.run(exitOK, "reconcile")
		value, _, err := w.s.Entry(t.Context(), "alice")
		if err != nil || !strings.HasPrefix(value, "user=alice~") {
			t.Fatalf("%s (%v)", value, err)
		}
		w.write("config.toml", "identity_key_file = \"identity.key\"\n"+w.read("config.toml")[len("identity_key_file = \"identity.key\"\nidentity_accept_unsigned = true\n"):])
		r.reload()
		if err := w.s.Restart(t.Context()); err != nil { // it keeps entries for a minute
			t.Fatal(err)
		}
		w.deliver("alice", "Signed")
		v.wants("alice ", "Signed") // and no signature to be seen
		w.proven("alice")

		for _, entry := range []string{"user=alice", "user=alice~AAAAAAAAAAAAAAAAAAAA", value[:len(value)-1] + "!"} {
			if err := w.s.SetEntry(t.Context(), "mallory", entry); err != nil {
				t.Fatal(err)
			}
			if err := w.s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.deliver("mallory", "Forged")
			v.wants("refused", "403", "not signed by us")
		}
		r.shows(`dovepush_notifications_total{result="forged"} 3`)

		// A new key: the service moves everybody within verify_every, or reconcile does so now.
		w.write("identity.key", keyB+"\n")
		w.write("old.key", keyA+"\n")
		w.write("config.toml", "identity_old_key_file = \"old.key\"\n"+w.read("config.toml"))
		r.reload()
		w.deliver("alice", "Old key")
		v.wants("alice ", "Old key")
		if out := w.run(exitOK, "reconcile", "-v"); !strings.Contains(out, "changed 1,") {
			t.Error(out)
		}
		if moved, _, err := w.s.Entry(t.Context(), "alice"); err != nil || moved == value || !strings.HasPrefix(moved, "user=alice~") {
			t.Errorf("%s (%v)", moved, err)
		}
		if err := w.s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.deliver("alice", "New key")
		v.wants("alice ", "New key")
		w.run(exitOK, "unregister", "alice")
		w.entry("alice", "")
		r.stop()
	})
}

// Mail is not kept for ever for a webhook that nobody has any more, nor thrown
// away at once, for it may be missing by mistake.
func TestWhatIsKeptForAWebhookThatIsGoneIsSaidAndDropped(t *testing.T) {
	w := notified{&site{t: t, dir: t.TempDir()}, anyPort(t)}
	h := newHookServer(t)
	h.status.Store(503)
	w.write("hook.secret", h.secret()+"\n")
	settings := func(more string) string {
		return fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[registry]\npath = \"r.db\"\n[api]\nlisten = \"unix:%s\"\n[notify]\nlisten = %q\npassword = \"p@ss\"\n%s",
			w.socket(), w.address, more)
	}
	w.write("config.toml", settings(h.settings("app", "")))
	r := w.start()
	if status := w.put("dovecot", "p@ss", pushPath, `{"user":"alice","subject":"x"}`); status != 200 {
		t.Fatalf("status %d", status)
	}
	r.shows(`dovepush_webhook_waiting{webhook="app"} 1`)
	w.write("config.toml", settings(""))
	r.reload()
	r.says(`webhook=app waiting=1`, 1)
	r.stop()
	r = w.start() // with no webhook at all
	r.says(`webhook=app waiting=1`, 1)
	if out := w.run(exitOK, "webhooks"); !strings.Contains(out, "app (not configured)") {
		t.Error(out)
	}
	w.write("config.toml", settings("[spool]\nkeep_dead = \"1ms\"\n"))
	r.reload()
	r.says("is gone", 1)
	if out := w.run(exitOK, "webhooks"); !strings.Contains(out, "There are no webhooks") {
		t.Error(out)
	}
	r.stop()
}

func TestDoctorMissesASpoolThatWasRemovedUnderTheService(t *testing.T) {
	w := notified{&site{t: t, dir: t.TempDir()}, anyPort(t)}
	h := newHookServer(t)
	w.write("hook.secret", h.secret()+"\n")
	w.write("config.toml", fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\ntls = \"none\"\n[registry]\npath = \"r.db\"\n[api]\nlisten = \"unix:%s\"\n[notify]\nlisten = %q\npassword = \"p@ss\"\n%s",
		w.socket(), w.address, h.settings("app", "")))
	r := w.start()
	if out := w.run(exitTemporary, "doctor"); !strings.Contains(out, "ok    spool") {
		t.Errorf("doctor says:\n%s", out)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(w.dir, "spool.db"+suffix)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if out := w.run(exitConfig, "doctor"); !strings.Contains(out, "FAIL  spool") || !strings.Contains(out, "mend: systemctl restart dovepush") {
		t.Errorf("doctor says:\n%s", out)
	}
	if status := w.put("dovecot", "p@ss", pushPath, `{"user":"alice"}`); status != 503 {
		t.Errorf("status %d", status)
	}
	r.stop()
}
