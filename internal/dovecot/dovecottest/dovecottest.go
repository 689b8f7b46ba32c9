// Package dovecottest gives tests real Dovecots: it starts them, stops them at
// the end of the test, and shows the end of their log when the test failed.
//
//	dovecottest.Each(t, dovecot.Options{Users: ...}, func(t *testing.T, s *dovecot.Server) {
//		...
//	})
//
// A start takes a fraction of a second, so each test has servers of its own
// and need not tidy up after the one before it.
package dovecottest

import (
	"context"
	"strings"
	"testing"

	"dovepush/internal/dovecot"
)

// logLines is how much of the log a failed test shows.
const logLines = 40

// Each runs f as the subtests "2.3" and "2.4", on a server of that series
// each. o.Version is ignored. In -short mode the subtests are skipped; a
// Dovecot that is missing fails them.
func Each(t *testing.T, o dovecot.Options, f func(t *testing.T, s *dovecot.Server)) {
	t.Helper()
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			o := o
			o.Version = v
			f(t, Start(t, o))
		})
	}
}

// Start starts one server, which is closed when the test and its subtests end.
func Start(t testing.TB, o dovecot.Options) *dovecot.Server {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real Dovecot; not in -short mode")
	}
	// Not t.Context(): it ends before the cleanups that may still need the
	// server.
	s, err := dovecot.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of Dovecot %s's log:\n%s", s.Version, tail(s.Log(), logLines))
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
