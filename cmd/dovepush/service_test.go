package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovepush/registry"
)

// running is a dovepush serve in a process of its own.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	client *http.Client
	log    *lockedBuffer
	states chan string // what it told systemd
	ended  chan struct{}
	err    error // of Wait, once ended
}

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// more adds settings for the service.
func (w *site) more(text string) {
	w.t.Helper()
	w.write("config.toml", w.read("config.toml")+text)
}

// short settings: what is to be tried again soon is.
const impatient = `
[retry]
initial = "200ms"
max = "2s"
`

// socket is where the service listens: a path short enough for a UNIX socket.
func (w *site) socket() string { return filepath.Join(w.dir, "api.sock") }

// start starts the service and waits until it says that it is ready. Its API
// is on the socket, unless the settings say otherwise.
func (w *site) start(args ...string) *running {
	w.t.Helper()
	r := w.launch(args...)
	r.told("READY=1")
	return r
}

// launch starts the service, and ends it with the test.
func (w *site) launch(args ...string) *running {
	w.t.Helper()
	return w.launchWith(nil, args...)
}

// launchWith is launch with more, or other, environment variables.
func (w *site) launchWith(env []string, args ...string) *running {
	w.t.Helper()
	if !strings.Contains(w.read("config.toml"), "[api]") {
		w.more(fmt.Sprintf("[api]\nlisten = \"unix:%s\"\n", w.socket()))
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(w.t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		w.t.Fatal(err)
	}
	r := &running{t: w.t, log: new(lockedBuffer), states: make(chan string, 1000), ended: make(chan struct{})}
	r.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", w.socket())
		},
		MaxIdleConnsPerHost: 16,
	}}
	r.cmd = exec.Command("dovepush", append([]string{"serve"}, args...)...)
	r.cmd.Env = append(os.Environ(), "DOVEPUSH_CONFIG="+filepath.Join(w.dir, "config.toml"), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	r.cmd.Env = append(r.cmd.Env, env...) // of equal names the last counts
	r.cmd.Stderr, r.cmd.Stdout = r.log, r.log
	if err := r.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	var listening sync.WaitGroup
	listening.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := notify.Read(buf)
			if err != nil {
				return
			}
			r.states <- string(buf[:n])
		}
	})
	listening.Go(func() {
		r.err = r.cmd.Wait()
		close(r.ended)
	})
	w.t.Cleanup(func() {
		r.kill(syscall.SIGKILL)
		notify.Close()
		listening.Wait()
		r.client.CloseIdleConnections()
		if w.t.Failed() {
			w.t.Logf("the service logged:\n%s", r.log)
		}
	})
	return r
}

// told waits until the service has told systemd a state that begins so.
func (r *running) told(want string) string {
	r.t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case state := <-r.states:
			if strings.HasPrefix(state, want) {
				return state
			}
		case <-r.ended:
			r.t.Fatalf("the service ended before it said %s: %v\n%s", want, r.err, r.log)
		case <-limit:
			r.t.Fatalf("the service never said %s\n%s", want, r.log)
		}
	}
}

// says waits until the service has logged a text so many times.
func (r *running) says(text string, times int) {
	r.t.Helper()
	eventually(r.t, "the service says "+text, func() error {
		if n := strings.Count(r.log.String(), text); n < times {
			return fmt.Errorf("said %d times, want %d", n, times)
		}
		return nil
	})
}

// reload has the service read its settings again, and returns the status lines
// that it has told systemd meanwhile.
func (r *running) reload() (status []string) {
	r.t.Helper()
	r.signal(syscall.SIGHUP)
	r.told("RELOADING=1")
	for {
		state := r.told("")
		if state == "READY=1" {
			return status
		}
		if line, found := strings.CutPrefix(state, "STATUS="); found {
			status = append(status, line)
		}
	}
}

func (r *running) signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// kill ends the service and waits until it has ended.
func (r *running) kill(s syscall.Signal) {
	r.cmd.Process.Signal(s) // it may have ended
	<-r.ended
}

// stop ends the service as systemd does. It must end well.
func (r *running) stop() {
	r.t.Helper()
	if r.kill(syscall.SIGTERM); r.err != nil {
		r.t.Errorf("the service ended with %v\n%s", r.err, r.log)
	}
}

// request asks the API. ok is false if there was no answer.
func (r *running) request(method, path, body string) (status int, answer []byte, ok bool) {
	request, err := http.NewRequestWithContext(r.t.Context(), method, "http://dovepush"+path, strings.NewReader(body))
	if err != nil {
		r.t.Error(err)
		return 0, nil, false
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := r.client.Do(request)
	if err != nil {
		return 0, nil, false
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, answer, err == nil
}

// ask asks the API, which must answer with the status.
func (r *running) ask(status int, method, path, body string) string {
	r.t.Helper()
	got, answer, ok := r.request(method, path, body)
	if !ok || got != status {
		r.t.Fatalf("%s %s: %d %s, want %d\n%s", method, path, got, answer, status, r.log)
	}
	return string(answer)
}

// row asks for a registration; ok is false if there is none.
func (r *running) row(user string) (row registry.Registration, ok bool) {
	r.t.Helper()
	status, answer, _ := r.request("GET", "/v1/registrations/"+user, "")
	switch status {
	case http.StatusNotFound:
		return row, false
	case http.StatusOK:
		if err := json.Unmarshal(answer, &row); err != nil {
			r.t.Fatal(err)
		}
		return row, true
	}
	r.t.Fatalf("GET %s: %d %s", user, status, answer)
	return row, false
}

// eventually waits until a condition holds. It is for what another process
// does in its own time: the limit is not what is tested.
func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	var err error
	for limit := time.Now().Add(2 * time.Minute); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
		if err = holds(); err == nil {
			return
		}
		if t.Context().Err() != nil {
			break
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// rows reads the registry of a site as another process does, and gives all its rows.
func (w *site) rows() (rows []registry.Registration) {
	w.t.Helper()
	r, err := registry.Open(w.t.Context(), filepath.Join(w.dir, "registry.db"), time.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	for row, err := range r.List(w.t.Context(), registry.Filter{}) {
		if err != nil {
			w.t.Fatal(err)
		}
		rows = append(rows, row)
	}
	return rows
}

var errNotYet = errors.New("not yet")
