package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"dovepush/registry/spool"
)

// The example of the convention's own reference libraries.
func TestSignaturesAreThoseOfTheConvention(t *testing.T) {
	s, err := newSigner(t.Context(), secrets(secretA))
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want || err != nil {
		t.Errorf("%s, want %s, error %v", got, want, err)
	}
}

func TestSecretsThatAreNoneAreRefusedAndNotShown(t *testing.T) {
	for secret, fine := range map[string]bool{
		secretA: true, " " + secretB + "\r\n": true,
		"": false, "whsec_": false, "whsec": false,
		"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw":    false,
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2La":  false, // 21 bytes
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2L!":  false,
		"whsec_" + strings.Repeat("QUFB", 21): true, // 63
		"whsec_" + strings.Repeat("QUFB", 22): false,
	} {
		err := CheckSecret(secret)
		if fine != (err == nil) {
			t.Errorf("%q: error %v", secret, err)
		}
		if err != nil && strings.Contains(err.Error(), "MfKQ") {
			t.Errorf("the message has the secret: %v", err)
		}
	}
}

func TestStatusesAreJudged(t *testing.T) {
	for status, want := range map[int]kind{
		200: arrived, 202: arrived, 204: arrived, 299: arrived,
		101: targetFails, 301: targetFails, 302: targetFails, 304: targetFails, 307: targetFails,
		401: targetFails, 403: targetFails, 408: targetFails, 429: targetFails, 500: targetFails, 503: targetFails, 599: targetFails, 999: targetFails,
		410: targetGone,
		400: eventFails, 404: eventFails, 405: eventFails, 409: eventFails, 413: eventFails, 415: eventFails, 422: eventFails, 418: eventFails,
	} {
		res := &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {"7"}}}
		v := judgeAnswer(res, time.Now())
		if v.kind != want || v.status != status {
			t.Errorf("%d: %+v", status, v)
		}
		if (v.after == 7*time.Second) != (want != arrived) {
			t.Errorf("%d: after %v", status, v.after)
		}
	}
}

func TestRetryAfterIsRead(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "120": 2 * time.Minute, "-1": 0, "1.5": 0, "soon": 0,
		"9223372036854775807":           365 * 24 * time.Hour,
		"99999999999999999999":          0,
		"Sun, 01 Mar 2026 12:01:00 GMT": time.Minute,
		"Sun, 01 Mar 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestErrorsAreSaidWithoutWhatTheTargetWrote(t *testing.T) {
	for want, err := range map[string]error{
		"no answer in 1s": context.DeadlineExceeded,
		"the connection was closed before an answer": io.ErrUnexpectedEOF,
		"no answer that is HTTP":                     errors.New(`malformed HTTP response "private"`),
		"the port does not speak TLS":                tls.RecordHeaderError{Msg: "private"},
		errProxy.Error():                             errProxy,
	} {
		wrapped := &url.Error{Op: "Post", URL: "http://name:password@host/?token=hidden", Err: err}
		if got := words(wrapped, time.Second); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	if got := words(os.ErrDeadlineExceeded, time.Second); got != "no answer in 1s" {
		t.Error(got)
	}
}

func TestWaitsGrowToALimit(t *testing.T) {
	for try, want := range map[int]time.Duration{0: 5, 1: 5, 2: 10, 3: 20, 4: 40, 10: 2560, 11: 3600, 1 << 30: 3600} {
		if got := backOff(5*time.Second, time.Hour, try, 1); got != want*time.Second {
			t.Errorf("try %d: %v", try, got)
		}
	}
	if got := backOff(5*time.Second, time.Hour, 3, 0.25); got != 5*time.Second {
		t.Errorf("a quarter of 20 s is %v", got)
	}
}

func TestOptionsThatCannotWorkAreRefusedWithoutSecrets(t *testing.T) {
	for name, change := range map[string]func(*Target){
		"no name":     func(t *Target) { t.Name = "" },
		"two":         func(t *Target) { t.Name = "other" },
		"no secret":   func(t *Target) { t.Secrets = nil },
		"no URL":      func(t *Target) { t.URL = "" },
		"bad URL":     func(t *Target) { t.URL = "http://u:password@host:port/" },
		"bad escape":  func(t *Target) { t.URL = "http://host/%zz?password" },
		"scheme":      func(t *Target) { t.URL = "ftp://u:password@host/" },
		"no host":     func(t *Target) { t.URL = "https:///path?password" },
		"fragment":    func(t *Target) { t.URL = "https://host/#password" },
		"timeout":     func(t *Target) { t.Timeout = -1 },
		"connections": func(t *Target) { t.MaxConnections = -1 },
	} {
		target := Target{Name: "hook", URL: "https://host/", Secrets: secrets(secretA)}
		o := Options{Targets: []Target{{Name: "other", URL: "https://host/", Secrets: secrets(secretA)}}}
		if _, err := New(o); err != nil {
			t.Fatal(err)
		}
		change(&target)
		o.Targets = append(o.Targets, target)
		if _, err := New(o); err == nil || strings.Contains(err.Error(), "password") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestOneFailureIsNotCountedForEachDeliveryUnderWay(t *testing.T) {
	now := time.Now()
	l, err := newLane(&Options{Now: func() time.Time { return now }, Random: func() float64 { return 1 }}, Target{Name: "hook", URL: "http://host/", Secrets: secrets(secretA)})
	if err != nil {
		t.Fatal(err)
	}
	d := spool.Delivery{Attempts: 1, Queued: now}
	down := verdict{kind: targetFails, reason: "status 503"}
	for n := range 4 {
		if a := l.decide(d, down, false); a.begins != (n == 0) || a.result != Failed {
			t.Errorf("%d: %+v", n, a)
		}
	}
	if l.pause.failures != 1 || !l.pause.until.Equal(now.Add(5*time.Second)) {
		t.Errorf("%+v", l.pause)
	}
	if free, _, wait := l.room(); free != 0 || wait != 5*time.Second {
		t.Errorf("%d may go, else in %v", free, wait)
	}
	now = now.Add(5 * time.Second)
	if free, probe, _ := l.room(); free != 1 || !probe {
		t.Errorf("%d may go, probe %v", free, probe)
	}
	l.decide(d, down, true)
	if l.pause.failures != 2 || !l.pause.until.Equal(now.Add(10*time.Second)) {
		t.Errorf("%+v", l.pause)
	}
	// Whoever was under way all the time and gets through ends it.
	if a := l.decide(d, verdict{}, false); a.ends != 5*time.Second || l.pause.on() {
		t.Errorf("%+v, %+v", a, l.pause)
	}
}

func TestAPauseEndsInTimeThoughTheClockWasSetBack(t *testing.T) {
	now := time.Now().Round(0)
	l, err := newLane(&Options{Now: func() time.Time { return now }, Random: func() float64 { return 1 }}, Target{Name: "hook", URL: "http://host/", Secrets: secrets(secretA)})
	if err != nil {
		t.Fatal(err)
	}
	l.decide(spool.Delivery{Attempts: 1, Queued: now}, verdict{kind: targetFails}, false)
	now = now.Add(-24 * time.Hour)
	l.room()
	if free, _, _ := l.room(); free != 1 {
		t.Errorf("%+v at %v", l.pause, now)
	}
}
