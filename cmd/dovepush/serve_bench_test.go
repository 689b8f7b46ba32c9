package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/api"
	"dovepush/imapmeta"
	"dovepush/registry"
	"dovepush/registry/registrytest"
)

// BenchmarkServeMillion starts the service, as make build builds it, on a
// registry of a million users of whom none is due, and looks what it takes: to
// become ready, and then, once it was scraped, by doing nothing for IDLE
// seconds (20). It is scraped meanwhile, as Prometheus would.
func BenchmarkServeMillion(b *testing.B) {
	const users = 1_000_000
	idle := 20 * time.Second
	if text := os.Getenv("IDLE"); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		idle = time.Duration(seconds) * time.Second
	}
	dir := b.TempDir()
	binary := filepath.Join(dir, "dovepush")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	if err := registrytest.Fill(b.Context(), filepath.Join(dir, "registry.db"), users, time.Now()); err != nil {
		b.Fatal(err)
	}
	settings := fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\n[server.auth]\nmaster_user = \"agent\"\npassword = \"x\"\n"+
		"[registry]\npath = \"registry.db\"\n[api]\nlisten = \"unix:%s/api.sock\"\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(settings), 0o600); err != nil {
		b.Fatal(err)
	}
	var ready, share, resident, peak, scrape []float64
	for b.Loop() {
		started := measureService(b, binary, dir)
		ready = append(ready, started.ready.Seconds()*1000)
		scrape = append(scrape, started.get(b, "/metrics").Seconds()*1000) // counts the rows
		time.Sleep(3 * time.Second)
		began, used := time.Now(), cpu(b, started.cmd.Process.Pid)
		var scrapes sync.WaitGroup
		for time.Since(began) < idle {
			scrapes.Go(func() { scrape = append(scrape, started.get(b, "/metrics").Seconds()*1000) })
			scrapes.Wait()
			time.Sleep(min(15*time.Second, idle-time.Since(began)))
		}
		share = append(share, 100*(cpu(b, started.cmd.Process.Pid)-used).Seconds()/time.Since(began).Seconds())
		resident = append(resident, memory(b, started.cmd.Process.Pid, "VmRSS:"))
		started.get(b, "/v1/registrations?limit=1000")
		peak = append(peak, memory(b, started.cmd.Process.Pid, "VmHWM:"))
		if err := started.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			b.Fatal(err)
		}
		if err := started.cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(median(ready), "ms-to-ready")
	b.ReportMetric(median(share), "%cpu-idle")
	b.ReportMetric(median(resident), "MiB-idle")
	b.ReportMetric(median(peak), "MiB-peak")
	b.ReportMetric(slices.Max(scrape), "ms-worst-scrape")
}

// measured is a service in a process of its own.
type measured struct {
	cmd    *exec.Cmd
	client *http.Client
	ready  time.Duration
}

func measureService(b *testing.B, binary, dir string) *measured {
	b.Helper()
	path := filepath.Join(dir, "notify")
	os.Remove(path)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		b.Fatal(err)
	}
	defer notify.Close()
	cmd := exec.Command(binary, "serve")
	cmd.Env = append(os.Environ(), "DOVEPUSH_CONFIG="+filepath.Join(dir, "config.toml"), "NOTIFY_SOCKET="+path)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill() })
	buf := make([]byte, 4096)
	notify.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		n, err := notify.Read(buf)
		if err != nil {
			b.Fatal(err)
		}
		if strings.HasPrefix(string(buf[:n]), "READY=1") {
			break
		}
	}
	return &measured{cmd: cmd, ready: time.Since(began), client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "api.sock"))
		},
	}}}
}

func (m *measured) get(b *testing.B, path string) time.Duration {
	b.Helper()
	began := time.Now()
	response, err := m.client.Get("http://dovepush" + path)
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
		b.Fatal(response.Status, err)
	}
	return time.Since(began)
}

// cpu is the time that a process has spent so far (proc_pid_stat(5)).
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))
	var ticks int
	for _, text := range fields[11:13] {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick
}

// memory is a line of /proc/PID/status in MiB.
func memory(b *testing.B, pid int, line string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), line)
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// BenchmarkPut compares the API's PUT with the least that could do the like: a
// handler that decodes the same JSON and does one durable insert into a table
// of its own. Both are asked over a UNIX socket by the same clients, in turns.
func BenchmarkPut(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			ours, bare := serveOurs(b), serveBare(b)
			const rounds, each = 5, 2000
			var rates, bareRates, worst, bareWorst []float64
			for b.Loop() {
				for range rounds {
					rate, p99 := puts(b, ours, clients, each)
					rates, worst = append(rates, rate), append(worst, p99)
					rate, p99 = puts(b, bare, clients, each)
					bareRates, bareWorst = append(bareRates, rate), append(bareWorst, p99)
				}
			}
			b.ReportMetric(median(rates), "puts/s")
			b.ReportMetric(median(bareRates), "bare-puts/s")
			b.ReportMetric(median(rates)/median(bareRates), "ratio")
			b.ReportMetric(median(worst), "p99-ms")
			b.ReportMetric(median(bareWorst), "bare-p99-ms")
		})
	}
}

// puts returns the rate, and the time that 99 of 100 requests did not exceed in ms.
func puts(b *testing.B, client *http.Client, clients, n int) (rate, p99 float64) {
	b.Helper()
	times := make([]float64, n)
	next := make(chan int)
	var all sync.WaitGroup
	began := time.Now()
	for range clients {
		all.Go(func() {
			for i := range next {
				user := registrytest.User(rand.IntN(1_000_000))
				began := time.Now()
				request, _ := http.NewRequest("PUT", "http://dovepush/v1/registrations/"+user, strings.NewReader(`{"identity":"3@7"}`))
				request.Header.Set("Content-Type", "application/json")
				response, err := client.Do(request)
				if err != nil {
					b.Error(err)
					continue
				}
				io.Copy(io.Discard, response.Body)
				response.Body.Close()
				if response.StatusCode != http.StatusAccepted {
					b.Error(response.Status)
				}
				times[i] = time.Since(began).Seconds() * 1000
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
	took := time.Since(began)
	slices.Sort(times)
	return float64(n) / took.Seconds(), times[n*99/100]
}

// serveOurs is the API before an agent and a registry, whose server is not there.
func serveOurs(b *testing.B) *http.Client {
	b.Helper()
	r, err := registry.Open(b.Context(), filepath.Join(b.TempDir(), "registry.db"), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	entries, err := imapmeta.New(imapmeta.Options{Address: "127.0.0.1:1", TLS: imapmeta.TLSNone,
		Auth: imapmeta.Auth{Mechanism: imapmeta.Plain, MasterUser: "agent", Secret: func(context.Context, string) (string, error) { return "x", nil }}})
	if err != nil {
		b.Fatal(err)
	}
	a, err := agent.New(agent.Options{Registry: r, Servers: []agent.Server{{Name: "main", Entries: entries, Timeout: time.Second, MaxConnections: 16}},
		Route: func(string) (string, bool) { return "main", true }, Identity: func(user string) string { return user },
		VerifyEvery: time.Hour, RetryInitial: time.Hour, RetryMax: time.Hour, Owner: "bench", Now: time.Now, Random: rand.Float64})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	b.Cleanup(func() { stop(); <-done; r.Close() })
	return serveUnix(b, api.Server(api.New(api.Options{Agent: a, Registry: r}), nil))
}

func serveBare(b *testing.B) *http.Client {
	b.Helper()
	store, err := registrytest.OpenBare(b.Context(), filepath.Join(b.TempDir(), "bare.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { store.Close() })
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/registrations/{user}", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Identity string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := store.Insert(r.Context(), r.PathValue("user"), "user="+body.Identity); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	return serveUnix(b, &http.Server{Handler: mux})
}

// serveUnix serves on a socket until the benchmark ends, and returns a client for it.
func serveUnix(b *testing.B, server *http.Server) *http.Client {
	b.Helper()
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	b.Cleanup(func() { server.Close(); <-done })
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
}
