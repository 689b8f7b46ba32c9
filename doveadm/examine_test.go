package doveadm

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"dovepush/imapmeta"
	"dovepush/internal/dovecot"
)

func TestExaminations(t *testing.T) {
	together(t, dovecot.Options{Users: people, Extra: busyDoveadm},
		shared{"each endpoint is told", eachEndpointIsTold},
		shared{"a probe leaves nothing", probeLeavesNothing},
		shared{"a probe for nobody", probeForNobody},
	)
}

func eachEndpointIsTold(t *testing.T, s *dovecot.Server) {
	c := on(t, s, func(o *Options) {
		o.Endpoints = []string{s.DoveadmURL, "http://127.0.0.1:1/doveadm/v1", strings.TrimSuffix(s.DoveadmURL, "v1") + "v9"}
	})
	var urls []string
	var errs []error
	c.Examine(t.Context(), func(url string, took time.Duration, err error) {
		urls, errs = append(urls, url), append(errs, err)
	})
	if len(urls) != 3 || errs[0] != nil || imapmeta.KindOf(errs[1]) != imapmeta.Retry || !errors.Is(errs[2], ErrNotDoveadm) {
		t.Errorf("%q: %v", urls, errs)
	}
	for _, e := range c.Endpoints() {
		if e.Out {
			t.Errorf("%s is set aside", e.URL)
		}
	}
	c = on(t, s, func(o *Options) { o.Secret = func(context.Context) (string, error) { return "wrong", nil } })
	c.Examine(t.Context(), func(_ string, _ time.Duration, err error) {
		if !errors.Is(err, ErrKey) {
			t.Errorf("a wrong key: %v", err)
		}
	})
}

func probeLeavesNothing(t *testing.T, s *dovecot.Server) {
	if err := s.SetEntry(t.Context(), "alice", "user=alice"); err != nil {
		t.Fatal(err)
	}
	if err := on(t, s).Probe(t.Context(), "alice", "token"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.AttributeFile("alice"))
	if err != nil || strings.Contains(string(text), "vendor.dovepush") || !strings.Contains(string(text), "user=alice") {
		t.Errorf("the dict holds %q, %v", text, err)
	}
}

func probeForNobody(t *testing.T, s *dovecot.Server) {
	if err := on(t, s).Probe(t.Context(), "nobody", "token"); !errors.Is(err, imapmeta.ErrNoUser) {
		t.Errorf("error %v", err)
	}
}

func TestAProbeTellsWhenValuesAreForgotten(t *testing.T) {
	methods := []method{set, get, unset}
	replies := []*reply{{status: statusResponse}, {status: statusResponse, data: []byte(`[{"value":""}]`)}, {status: statusResponse}}
	if err := probed(methods, replies, "token"); !errors.Is(err, errOther) {
		t.Errorf("an absent probe: %v", err)
	}
	replies[1] = nil
	if err := probed(methods, replies, "token"); !errors.Is(err, ErrNoReply) {
		t.Errorf("no reply: %v", err)
	}
}
