package doctor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestDoveconfsBlocksAreRead(t *testing.T) {
	b, err := parseDoveconf(`# 2.4.1-4 (7d8c0e5759): /etc/dovecot/dovecot.conf
dict = a = b
passdb masters {
  master = yes
  mechanisms_filter {
    plain = yes
  }
}
service "srv.imap-login/%{pid}" {
  # not the version
  mode = 0600
}
push_notification ox {
  url = http://dovecot:p=w{@127.0.0.1/
}
empty =
`)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.value("dict"); got != "a = b" {
		t.Errorf("dict is %q", got)
	}
	if got := b.comments; len(got) != 1 || !strings.HasPrefix(got[0], "2.4.1-4 ") {
		t.Errorf("comments are %q", got)
	}
	if got := b.all("passdb"); len(got) != 1 || got[0].title != "masters" || got[0].value("master") != "yes" || len(got[0].blocks) != 1 {
		t.Errorf("passdb is %+v", got)
	}
	if got := b.all("service"); len(got) != 1 || got[0].title != "srv.imap-login/%{pid}" {
		t.Errorf("service is %+v", got)
	}
	if got := b.all("push_notification")[0].value("nothing", "url"); got != "http://dovecot:p=w{@127.0.0.1/" {
		t.Errorf("url is %q", got)
	}
}

func TestWhatDoveconfDoesNotPrintIsRefused(t *testing.T) {
	for _, text := range []string{"}", "a {", "doveconf: Fatal: something", strings.Repeat("a {\n", maxBlocks+2) + strings.Repeat("}\n", maxBlocks+2)} {
		if _, err := parseDoveconf(text); !errors.Is(err, errDoveconf) {
			t.Errorf("%.40q: error %v", text, err)
		}
	}
	if _, err := parseDoveconf("push_url http://dovecot:hunter2@host/"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows a secret: %v", err)
	}
}

func TestTheDoveconfCommandIsAShellsAndBounded(t *testing.T) {
	ctx := t.Context()
	b, err := doveconf(ctx, time.Minute, `printf '%s = %s\n'`, "key", "two words")
	if err != nil || b.value("key") != "two words" {
		t.Errorf("arguments came as %+v, %v", b, err)
	}
	if _, err := doveconf(ctx, time.Minute, "echo 'Permission denied' >&2; false"); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("a failed command's words are lost: %v", err)
	}
	if _, err := doveconf(ctx, 50*time.Millisecond, "sleep 60 | cat;"); err == nil || !strings.Contains(err.Error(), "more than 50ms") {
		t.Errorf("a hung command: %v", err)
	}
	if _, err := doveconf(ctx, time.Minute, "yes 'a = b';"); err == nil {
		t.Error("endless output is read to its end, which there is not")
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := doveconf(stopped, time.Minute, "sleep 60;"); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted command: %v", err)
	}
}

func FuzzParseDoveconf(f *testing.F) {
	f.Add("a {\n b = c\n}\n")
	f.Add("# 2.3\nx \"y\" {\n}\n}")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := parseDoveconf(text)
		if (b == nil) == (err == nil) {
			t.Errorf("%q: %v, %v", text, b, err)
		}
		if err == nil {
			s := &settings{protocol: make(map[string]bool), plugins: make(map[string]map[string]bool), ports: make(map[string]bool)}
			s.takeAll(b)
			s.takePorts(b)
			s.takeIMAP(b)
			s.takeLMTP(b)
			s.faults(expectation{imap: true, master: true})
		}
	})
}
