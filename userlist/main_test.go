package userlist

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// helperEnv names the function that a re-executed test binary runs instead of
// the tests.
const helperEnv = "DOVEPUSH_USERLIST_HELPER"

func TestMain(m *testing.M) {
	helpers := map[string]func(dir string) error{
		"disk trouble": helpDiskTrouble,
		"wait":         helpWait,
	}
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// ownName is a default identity: user=USER.
func ownName(user string) string { return user }

func options(dir string) Options {
	return Options{Name: "users.txt", Dir: dir, Identity: ownName}
}

// all returns what a list yields before its error, and the error.
func all(ctx context.Context, l *List) (entries []Entry, err error) {
	for e, err := range l.All(ctx) {
		if err != nil {
			return entries, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

const (
	many       = 250_000 // more users than a chunk holds
	several    = 5_000   // more users than a small chunk holds
	smallChunk = 16 << 10
)

// numbered returns a list of n users in no order, and their entries in order.
func numbered(n int) (string, []Entry) {
	entries := make([]Entry, n)
	lines := make([]string, n)
	for i := range entries {
		entries[i].User = fmt.Sprintf("user%07d@mail.example", i)
		lines[i] = entries[i].User + "\n"
		if i%3 == 0 {
			entries[i].Identity = fmt.Sprintf("%d@17", i)
			lines[i] = entries[i].User + "\t" + entries[i].Identity + "\r\n"
		}
	}
	shuffle := rand.New(rand.NewPCG(1, 2))
	shuffle.Shuffle(n, func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	return strings.Join(lines, ""), entries
}

// same expects two lists of entries to be one.
func same(t testing.TB, got, want []Entry) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	if len(got) < 20 && len(want) < 20 {
		t.Errorf("got %q\nwant %q", got, want)
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("entry %d is %q, want %q", i, got[i], want[i])
			break
		}
	}
	t.Errorf("got %d entries, want %d", len(got), len(want))
}
