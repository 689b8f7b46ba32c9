package doveadm

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"testing/iotest"

	"dovepush/imapmeta"
)

// FuzzReadReplies: whatever a server says, no reply goes to another command
// than the one it is for, and what is JSON is read as encoding/json reads it.
func FuzzReadReplies(f *testing.F) {
	for _, a := range answers {
		f.Add([]byte(a.text), len(a.want))
	}
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		n = min(max(n, 0), 100)
		replies, err := read(bytes.NewReader(text))
		again, err2 := read(iotest.HalfReader(bytes.NewReader(text)))
		if (err == nil) != (err2 == nil) || !reflect.DeepEqual(replies, again) {
			t.Errorf("read in parts: %v (%v); at once %v (%v)", again, err2, replies, err)
		}
		for i, r := range match(replies, n) {
			switch {
			case r == nil:
			case r.tagged && r.tag != strconv.Itoa(i):
				t.Errorf("command %d gets the reply to %q", i, r.tag)
			case !r.tagged && (len(replies) != n || !reflect.DeepEqual(r, &replies[i])):
				t.Errorf("command %d of %d gets %v, though it is not known whose of %d that is", i, n, r, len(replies))
			}
			if r != nil {
				_, err := r.value()
				kinds := []imapmeta.Kind{imapmeta.Retry, imapmeta.User, imapmeta.Server}
				if err := errors.Join(err, r.err(get, false), r.err(set, true)); err != nil && !slices.Contains(kinds, imapmeta.KindOf(err)) {
					t.Errorf("kind %q", imapmeta.KindOf(err))
				}
			}
		}
		var list [][]json.RawMessage
		if json.Unmarshal(text, &list) != nil || list == nil {
			return
		}
		if err == nil && len(list) != len(replies) {
			t.Errorf("%d replies, but %d elements", len(replies), len(list))
		}
		for i, r := range replies {
			if r.long {
				continue
			}
			var tag string
			if len(list[i]) > 2 && json.Unmarshal(list[i][2], &tag) != nil {
				tag = "" // it may have been set by then
			}
			if string(r.data) != string(list[i][1]) || r.tag != tag && r.tagged || r.tagged != (tag != "") {
				t.Errorf("reply %d is %q with tag %q; want %q with %q", i, r.data, r.tag, list[i][1], tag)
			}
		}
	})
}

// FuzzReadUsers: a list is complete, or it is an error.
func FuzzReadUsers(f *testing.F) {
	for _, text := range usersAnswers {
		f.Add([]byte(text), 100)
		f.Add([]byte(text[:len(text)/2]), 1)
	}
	f.Fuzz(func(t *testing.T, text []byte, most int) {
		collect := func(in io.Reader) (users []string, err error) {
			err = readUsers(in, func(user string) bool {
				users = append(users, user)
				return len(users) != most
			})
			return users, err
		}
		users, err := collect(bytes.NewReader(text))
		again, err2 := collect(iotest.OneByteReader(bytes.NewReader(text)))
		if (err == nil) != (err2 == nil) || !slices.Equal(users, again) {
			t.Errorf("read in parts: %q (%v); at once %q (%v)", again, err2, users, err)
		}
		if err != nil {
			return
		}
		var list [][]json.RawMessage
		var data struct{ UserList []string }
		if err := json.Unmarshal(text, &list); err != nil || len(list) != 1 || len(list[0]) < 2 {
			t.Fatalf("taken for a complete list: %q (%v)", users, err)
		}
		if err := json.Unmarshal(list[0][1], &data); err != nil || !slices.Equal(data.UserList, users) {
			t.Errorf("got %q; want %q (%v)", users, data.UserList, err)
		}
	})
}
