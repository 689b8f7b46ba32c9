package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"dovepush/internal/dovecot"
)

// eachArena runs f on both series of Dovecot, with few users.
func eachArena(t *testing.T, users int, f func(t *testing.T, a *arena)) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real Dovecot; not in -short mode")
	}
	p, err := build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range dovecot.Versions() {
		t.Run(string(v), func(t *testing.T) {
			a, err := newArena(t.Context(), p, v, nil, users)
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			f(t, a)
		})
	}
}

// few has several POSTs for few users.
var few = load{connections: 2, batch: 2}

// allContenders is those of all tables.
func allContenders(t *testing.T, a *arena) []contender {
	t.Helper()
	imap, both := (&bench{progress: t.Output()}).everybody(a), a.overBoth(few)
	if len(imap) < 4 || len(both) < 5 {
		t.Fatalf("%d and %d contenders", len(imap), len(both))
	}
	return append(imap, both...)
}

func TestEveryContenderDoesItsWork(t *testing.T) {
	eachArena(t, 5, func(t *testing.T, a *arena) {
		for _, c := range allContenders(t, a) {
			t.Run(c.name, func(t *testing.T) {
				if err := a.reset(a.users); err != nil {
					t.Fatal(err)
				}
				if c.forget != nil {
					if err := c.forget(); err != nil { // two are called dovepush
						t.Fatal(err)
					}
				}
				for _, user := range a.users {
					if have, present, err := a.server.Entry(t.Context(), user); err != nil || present {
						t.Fatalf("after the reset %s has %q, %v", user, have, err)
					}
				}
				s, err := a.run(t.Context(), c.first, a.users)
				if err != nil {
					t.Fatal(err)
				}
				if s.users != len(a.users) || s.wall <= 0 || s.client <= 0 {
					t.Errorf("it took nothing: %+v", s)
				}
				for _, user := range a.users {
					if have, _, err := a.server.Entry(t.Context(), user); err != nil || have != "user="+user {
						t.Errorf("%s has %q, %v", user, have, err)
					}
				}
				if err := a.check(t.Context(), a.users); err != nil {
					t.Error(err)
				}
				if _, err := a.run(t.Context(), c.again, a.users); err != nil {
					t.Error(err)
				}

				// To look again is to look at each: the last one drifted.
				last, middle := a.users[len(a.users)-1], a.users[len(a.users)/2]
				if err := a.server.SetEntry(t.Context(), last, ""); err != nil {
					t.Fatal(err)
				}
				_, err = a.run(t.Context(), c.again, a.users)
				if strings.HasPrefix(c.name, house) { // which mends it
					if err == nil {
						err = a.check(t.Context(), a.users)
					}
					if err != nil {
						t.Error(err)
					}
				} else if err == nil {
					t.Error("it has not seen that an entry is not right")
				}

				// One in the middle is somebody else's, which dovepush keeps.
				if err := a.server.SetEntry(t.Context(), last, value(last)); err != nil {
					t.Fatal(err)
				}
				if err := a.server.SetEntry(t.Context(), middle, "user=somebody"); err != nil {
					t.Fatal(err)
				}
				if _, err := a.run(t.Context(), c.again, a.users); err == nil {
					t.Error("it has not seen that an entry is somebody else's")
				}
			})
		}
	})
}

func TestNoContenderPassesOverARefusal(t *testing.T) {
	eachArena(t, 1, func(t *testing.T, a *arena) {
		for _, c := range allContenders(t, a) {
			if _, err := a.run(t.Context(), c.first, []string{a.users[0], "nobody@bench.example"}); err == nil {
				t.Errorf("%s has not seen that a user was refused", c.name)
			}
		}
		// The entry cannot be written any more: NO.
		if err := a.reset(a.users); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(a.server.AttributeFile(a.users[0]), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, flags := range [][]string{{"-set"}, {"-set", "-two"}, {"-set", "-login"}} {
			_, err := a.run(t.Context(), a.rawClient("raw", 1, flags...).first, a.users)
			if err == nil || !strings.Contains(err.Error(), "is not OK") || !strings.Contains(err.Error(), " NO ") {
				t.Errorf("raw %q: %v", flags, err)
			}
		}
		for _, flags := range [][]string{{"-set"}, {"-set", "-two"}} {
			c := a.rawHTTPClient("raw HTTP", few, flags...)
			_, err := a.run(t.Context(), c.first, a.users)
			if err == nil || !strings.Contains(err.Error(), "is not OK") || !strings.Contains(err.Error(), "exitCode") {
				t.Errorf("raw HTTP %q: %v", flags, err)
			}
			_, err = a.run(t.Context(), withKey("wrong", c.first), a.users)
			if err == nil || !strings.Contains(err.Error(), "HTTP/1.1 401 ") {
				t.Errorf("raw HTTP %q, with a wrong key: %v", flags, err)
			}
		}
	})
}

// withKey is the same with another API key.
func withKey(key string, c command) command {
	return func(list string) (*exec.Cmd, error) {
		cmd, err := c(list)
		if err == nil {
			cmd.Env = append(cmd.Env, "BENCH_API_KEY="+key)
		}
		return cmd, err
	}
}

// Two steps are two: an entry that is right already is not written again.
func TestTwoStepsOverHTTPWriteWhatIsNotRight(t *testing.T) {
	eachArena(t, 4, func(t *testing.T, a *arena) {
		if err := a.server.SetEntry(t.Context(), a.users[1], "user=somebody"); err != nil {
			t.Fatal(err)
		}
		if err := a.reset(a.users[2:]); err != nil {
			t.Fatal(err)
		}
		written := func() os.FileInfo {
			info, err := os.Stat(a.server.AttributeFile(a.users[0]))
			if err != nil {
				t.Fatal(err)
			}
			return info
		}
		before := written()
		if _, err := a.run(t.Context(), a.rawHTTPClient("", few, "-set", "-two").first, a.users); err != nil {
			t.Error(err)
		}
		if err := a.check(t.Context(), a.users); err != nil {
			t.Error(err)
		}
		if !os.SameFile(before, written()) {
			t.Error("an entry that was right was written")
		}
		if _, err := a.run(t.Context(), a.rawHTTPClient("", few, "-set").first, a.users); err != nil {
			t.Error(err)
		}
		if os.SameFile(before, written()) {
			t.Error("a write leaves no trace: the test proves nothing")
		}
	})
}

// What the table doveadm calls dovepush has the settings that it comes with.
func TestDefaultsAreDovepushs(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program; not in -short mode")
	}
	p, err := build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p.dir = t.TempDir()
	a := &arena{programs: p}
	d := a.installation(house, "[[server]]\nconnector = \"doveadm\"\n[server.doveadm]\nendpoints = [\"unix:/nowhere\"]\napi_key = \"x\"\n")
	cmd, err := d.command("config", "show", "--json")
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var shown struct {
		Server []struct {
			MaxConnections int `json:"max_connections"`
			Doveadm        struct {
				MaxConnections int `json:"max_connections"`
				Batch          int `json:"batch"`
			}
		}
	}
	if err := json.Unmarshal(out, &shown); err != nil || len(shown.Server) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	s := shown.Server[0]
	if got := (load{s.Doveadm.MaxConnections, s.Doveadm.Batch}); got != standard() || s.MaxConnections != connections {
		t.Errorf("DoveAdm %v, IMAP %d; want %v and %d", got, s.MaxConnections, standard(), connections)
	}
}

func TestNothingCountsUnlessTheEntriesAreRight(t *testing.T) {
	eachArena(t, 3, func(t *testing.T, a *arena) {
		b := bench{rounds: 1, progress: io.Discard}
		// -h: it does nothing, successfully.
		for _, c := range []contender{a.rawClient("idle", 1, "-h"), a.rawHTTPClient("idle, HTTP", few, "-h")} {
			if _, _, err := b.inTurns(t.Context(), a, []contender{c}); err == nil || !strings.Contains(err.Error(), "has no entry") {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if _, err := a.run(t.Context(), a.rawClient("raw", 1, "-set").first, a.users); err != nil {
			t.Fatal(err)
		}
		if err := a.server.SetEntry(t.Context(), a.users[1], "user=somebody"); err != nil {
			t.Fatal(err)
		}
		if err := a.check(t.Context(), a.users); err == nil || !strings.Contains(err.Error(), "another entry") {
			t.Errorf("another's entry: %v", err)
		}
	})
}

func TestTablesAreComplete(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real Dovecot; not in -short mode")
	}
	var tables strings.Builder
	args := []string{"-dir", t.TempDir(), "-users", "5", "-rounds", "1", "-repetitions", "2", "-dovecot", "2.3"}
	if err := run(t.Context(), args, &tables, t.Output()); err != nil {
		t.Fatal(err)
	}
	for title, rows := range map[string][]string{
		"16 connections: from nothing":                         {house, yardIMAP},
		"16 connections: all right already":                    {house, yardIMAP},
		" 1 connections: from nothing":                         {house, yardIMAP},
		"64 connections: all right already":                    {house, yardIMAP},
		"16 connections, stock process settings: from nothing": {house, yardIMAP},
		"one user, the whole process":                          {house, yardIMAP},
		"IMAP on 16: from nothing":                             {house, yardHTTP, house + ", IMAP"},
		"IMAP on 16: all right already":                        {house, yardHTTP},
		"IMAP on 16, stock process settings: from nothing":     {house, yardHTTP},
		"under other loads: from nothing":                      {"1 × 10", "4 × 100", "4 × 1000"},
		"under other loads: all right already":                 {"1 × 10", "4 × 100", "4 × 1000"},
	} {
		_, table, found := strings.Cut(tables.String(), title)
		table, _, _ = strings.Cut(table, "###")
		for _, row := range rows {
			if !found || !strings.Contains(table, "\n| "+row+" ") {
				t.Errorf("%s: no %s: %s", title, row, table)
			}
		}
		if strings.Contains(table, " - ") { // nothing to compare with
			t.Errorf("%s: %s", title, table)
		}
	}
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	rate := func(perSecond ...int) (samples []sample) {
		for _, n := range perSecond {
			samples = append(samples, sample{users: n, wall: time.Second})
		}
		return samples
	}
	// The machine was slow in the second round, for both.
	ours, theirs := rate(90, 9, 100), rate(100, 10, 100)
	if got := ratio(ours, theirs).format("%.2f"); got != "0.90 [0.90–1.00]" {
		t.Error(got)
	}
	if got := each(ours, sample.rate).format("%.0f"); got != "90 [9–100]" {
		t.Error(got)
	}
	if got := (spread{4, 1, 3, 2}).median(); got != 2.5 {
		t.Error(got)
	}
	if got := ratio(ours, nil).format("%.2f"); got != "-" {
		t.Error(got)
	}
}
