package main

import (
	"io"
	"os"
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

func TestEveryContenderDoesItsWork(t *testing.T) {
	eachArena(t, 5, func(t *testing.T, a *arena) {
		contenders := (&bench{progress: t.Output()}).everybody(a)
		if len(contenders) < 4 {
			t.Fatalf("%d contenders", len(contenders))
		}
		for _, c := range contenders {
			t.Run(c.name, func(t *testing.T) {
				if err := a.reset(a.users); err != nil {
					t.Fatal(err)
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
				last := a.users[len(a.users)-1]
				if err := a.server.SetEntry(t.Context(), last, ""); err != nil {
					t.Fatal(err)
				}
				_, err = a.run(t.Context(), c.again, a.users)
				if c.name == house { // which mends it
					if err == nil {
						err = a.check(t.Context(), a.users)
					}
					if err != nil {
						t.Error(err)
					}
				} else if err == nil {
					t.Error("it has not seen that an entry is not right")
				}
			})
		}
	})
}

func TestNoContenderPassesOverARefusal(t *testing.T) {
	eachArena(t, 1, func(t *testing.T, a *arena) {
		for _, c := range (&bench{progress: t.Output()}).everybody(a) {
			if _, err := a.run(t.Context(), c.first, []string{a.users[0], "nobody@bench.example"}); err == nil {
				t.Errorf("%s has not seen that a login was refused", c.name)
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
	})
}

func TestNothingCountsUnlessTheEntriesAreRight(t *testing.T) {
	eachArena(t, 3, func(t *testing.T, a *arena) {
		b := bench{rounds: 1, progress: io.Discard}
		// -h: it does nothing, successfully.
		idle := contender{name: "idle", first: a.rawClient("", 1, "-h").first, again: a.rawClient("", 1).again}
		if _, _, err := b.inTurns(t.Context(), a, []contender{idle}); err == nil || !strings.Contains(err.Error(), "has no entry") {
			t.Errorf("idle: %v", err)
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
	for _, title := range []string{"16 connections: from nothing", "16 connections: all right already", "1 connections: from nothing",
		"64 connections: all right already", "stock process settings: from nothing", "one user, the whole process"} {
		_, table, found := strings.Cut(tables.String(), title)
		table, _, _ = strings.Cut(table, "###")
		if !found || !strings.Contains(table, "| "+house+" ") || !strings.Contains(table, "| "+yard+" ") {
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
