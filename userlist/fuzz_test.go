package userlist

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// model is Read and All for those who have memory: the lines that name a user,
// the entries, and the error with those before it.
func model(text string) (named int64, entries []Entry, wrong string) {
	type row struct {
		Entry
		line int
	}
	rows := map[string]row{}
	conflicts := map[string]string{}
	text = strings.TrimPrefix(text, "\ufeff")
	for i, line := range strings.Split(text, "\n") {
		line := strings.TrimSuffix(line, "\r")
		if i == strings.Count(text, "\n") { // the last has no end
			line = text[strings.LastIndex(text, "\n")+1:]
		}
		fields := strings.Split(line, "\t")
		if strings.HasPrefix(line, "#") {
			fields = []string{"#"}
		}
		if len(line) > 4096 || strings.Contains(line, "\x00") || len(fields) > 2 || len(fields) == 2 && (fields[0] == "" || fields[1] == "") {
			return 0, nil, fmt.Sprintf("users.txt line %d: ", i+1)
		}
		if line == "" || line[0] == '#' {
			continue
		}
		named++
		user, identity := fields[0], strings.Join(fields[1:], "")
		first, ok := rows[user]
		if !ok {
			rows[user] = row{Entry{user, identity}, i + 1}
			continue
		}
		if cmp.Or(first.Identity, user) != cmp.Or(identity, user) && conflicts[user] == "" {
			conflicts[user] = fmt.Sprintf("users.txt lines %d and %d: ", first.line, i+1)
		}
	}
	for _, r := range rows {
		entries = append(entries, r.Entry)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return bytes.Compare([]byte(a.User), []byte(b.User)) })
	for i, e := range entries {
		if conflicts[e.User] != "" {
			return named, entries[:i], conflicts[e.User]
		}
	}
	return named, entries, ""
}

// FuzzRead: whatever a list holds, and however few of its records are sorted at
// a time, it comes out as one sorted in memory.
func FuzzRead(f *testing.F) {
	for _, text := range []string{"", "\ufeffbob\r\nalice\t1@2\n# c\n\nalice\t1@2", "b\na\nab\na\tb\na\n", "a\xff\na\x7f\nA\na\n\xff\t\xff\n\xff\nZ", "a\tb\tc\n", "\tb",
		"a\t\n", "a\x00b\n", "a\ta\na\nb\nb\tb\nb\tc\nb\td\n", long + "\r\n", long + "x\n", "a\r\r\n\r\n\r", "a\n" + long[:200] + "\n" + long[:100] + "\nz\n"} {
		for _, chunk := range []uint16{0, 16, 100} {
			f.Add([]byte(text), chunk)
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte, chunk uint16) {
		named, want, wrong := model(string(text))
		var got []Entry
		l, err := read(t.Context(), bytes.NewReader(text), options(dir), int(chunk))
		if err == nil {
			defer l.Close()
			if l.Lines() != named {
				t.Errorf("%d lines, want %d", l.Lines(), named)
			}
			got, err = all(t.Context(), l)
		}
		if wrong != "" {
			if !errors.Is(err, ErrMalformed) || !strings.HasPrefix(err.Error(), wrong) {
				t.Fatalf("error %v, want one that begins with %q", err, wrong)
			}
		} else if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
	})
}
