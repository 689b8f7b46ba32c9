package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dovepush/internal/dovecot"
	"dovepush/internal/dovecot/dovecottest"
	"dovepush/registry"
)

// both runs f on either Dovecot, at the same time where there is room.
func both(t *testing.T, o dovecot.Options, f func(t *testing.T, s *dovecot.Server)) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			o := o
			o.Version = version
			f(t, dovecottest.Start(t, o))
		})
	}
}

// everyWay runs f on either Dovecot by each connector, each in a place of its own.
func everyWay(t *testing.T, o dovecot.Options, f func(t *testing.T, w *site)) {
	t.Parallel()
	for _, version := range dovecot.Versions() {
		for _, connector := range connectors {
			t.Run(string(version)+"/"+connector, func(t *testing.T) {
				t.Parallel()
				o := o
				o.Version = version
				f(t, newSiteBy(t, dovecottest.Start(t, o), connector))
			})
		}
	}
}

// names are those of n users.
func names(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("u%04d", i))
	}
	return list
}

// numbered are n users.
func numbered(n int) (users []dovecot.User) {
	for _, name := range names(n) {
		users = append(users, dovecot.User{Name: name, Password: "x"})
	}
	return users
}

// wishes are what was asked of the service, and so what is right in the end:
// for each user one value, or several as long as the service did not
// acknowledge which. "" stands for no entry.
type wishes struct {
	mu    sync.Mutex
	right map[string][]string
	now   func() time.Time // the service's clock
}

func newWishes() *wishes { return &wishes{right: make(map[string][]string), now: time.Now} }

func (ws *wishes) note(user, value string, acknowledged bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	before, known := ws.right[user]
	switch {
	case acknowledged:
		ws.right[user] = []string{value}
	case known:
		ws.right[user] = append(before, value)
	default:
		ws.right[user] = []string{"", value}
	}
}

// wish asks the service for a user's entry to notify for identity, or for none
// if identity is empty. It returns whether that was acknowledged, and notes it.
func (r *running) wish(ws *wishes, user, identity string) (acknowledged bool) {
	method, body, value := "DELETE", "", ""
	if identity != "" {
		method, value = "PUT", "user="+identity
		text, err := json.Marshal(map[string]string{"identity": identity})
		if err != nil {
			r.t.Error(err)
			return false
		}
		body = string(text)
	}
	status, answer, ok := r.request(method, "/v1/registrations/"+url.PathEscape(user), body)
	if ok && status != http.StatusOK && status != http.StatusAccepted && status != http.StatusNoContent {
		r.t.Errorf("%s %s: %d %s", method, user, status, answer)
		ok = false
	}
	ws.note(user, value, ok)
	return ok
}

// settles waits until every acknowledged wish is carried out, in the registry
// and in Dovecot, and nothing else is left to do.
func (w *site) settles(ws *wishes) {
	w.t.Helper()
	eventually(w.t, "every registration right", func() error { return w.right(ws) })
	// A removal in doubt is looked at now and then, and is due for a moment.
	eventually(w.t, "nothing left to do", func() error {
		var sum tally
		out := w.run(0, "status", "--json")
		if err := json.Unmarshal([]byte(out), &sum); err != nil {
			return err
		}
		if len(sum.Circuits) > 0 || sum.Due > 0 || sum.States[registry.Failed]+sum.States[registry.Conflict]+sum.States[registry.Pending] > 0 {
			return errors.New(out)
		}
		return nil
	})
	w.run(0, "status")
}

func (w *site) right(ws *wishes) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	rows := make(map[string]registry.Registration)
	for _, row := range w.rows() {
		rows[row.User] = row
	}
	var users []string
	for user, right := range ws.right {
		users = append(users, user)
		row, found := rows[user]
		switch {
		case !found && slices.Contains(right, ""):
			continue
		case !found:
			return fmt.Errorf("%s is lost, want %q", user, right)
		case row.ClaimedBy != "":
			return fmt.Errorf("%s is claimed by %s", user, row.ClaimedBy)
		case row.Wanted == registry.Absent && slices.Contains(right, ""):
			// The entry is gone. The row stays for as long as Dovecot may still
			// carry out a write that it did not answer.
			if row.State != registry.Removing || row.Error == nil || !strings.Contains(row.Error.Message, "may still come through") ||
				!row.DoubtUntil.After(ws.now()) {
				return fmt.Errorf("%s is not unregistered: %+v, %+v", user, row, row.Error)
			}
		case row.Wanted == registry.Absent || row.State != registry.Registered || row.Error != nil || !slices.Contains(right, row.Value):
			return fmt.Errorf("%s should be %q: %+v, %+v", user, right, row, row.Error)
		case !row.NextAt.After(ws.now()):
			return fmt.Errorf("%s is due", user)
		}
	}
	if len(rows) > len(users) {
		return fmt.Errorf("%d registrations of %d users", len(rows), len(users))
	}
	entries, err := w.entries(users)
	if err != nil {
		return err
	}
	for _, user := range users {
		want := ""
		if row := rows[user]; row.Wanted == registry.Present {
			want = row.Value
		}
		if entries[user] != want {
			return fmt.Errorf("the entry of %s holds %q, want %q", user, entries[user], want)
		}
	}
	return nil
}

// entries asks doveadm what many users' entries hold; "" is none.
func (w *site) entries(users []string) (map[string]string, error) {
	values := make(map[string]string, len(users))
	for page := range slices.Chunk(users, 200) {
		var commands [][]any
		for _, user := range page {
			commands = append(commands, []any{"mailboxMetadataGet", map[string]any{"user": user, "mailbox": "", "allowEmptyMailboxName": true,
				"key": "/private/vendor/vendor.dovecot/http-notify"}, user})
		}
		body, err := json.Marshal(commands)
		if err != nil {
			return nil, err
		}
		request, err := http.NewRequestWithContext(w.t.Context(), "POST", w.s.DoveadmURL, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "X-Dovecot-API "+base64.StdEncoding.EncodeToString([]byte(w.s.APIKey)))
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		var replies [][3]json.RawMessage
		if err := json.Unmarshal(raw, &replies); err != nil || len(replies) != len(page) {
			return nil, fmt.Errorf("doveadm: %d replies for %d users, %w: %.300s", len(replies), len(page), err, raw)
		}
		for i, reply := range replies {
			var got []struct{ Value string }
			if err := json.Unmarshal(reply[1], &got); err != nil || len(got) != 1 {
				return nil, fmt.Errorf("doveadm says of %s: %s", page[i], reply[1])
			}
			values[page[i]] = got[0].Value
		}
	}
	return values, nil
}
