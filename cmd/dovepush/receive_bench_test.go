package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dovepush/registry/registrytest"
)

// BenchmarkServeNotifications compares what the whole service makes of
// notifications for a million registered users, each process by itself, with
// bench/rawnotify, in turns: without webhooks, with one that takes all, and
// with one that hangs. Memory is the service's.
func BenchmarkServeNotifications(b *testing.B) {
	const users = 1_000_000
	dir := b.TempDir()
	bin := func(name, pkg string) string {
		path := filepath.Join(dir, name)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		return path
	}
	binary := bin("dovepush", ".")
	raw := exec.Command(bin("rawnotify", "dovepush/bench/rawnotify"))
	bare := startRaw(b, raw)
	if err := registrytest.Fill(b.Context(), filepath.Join(dir, "filled.db"), users, time.Now()); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct{ name, hook string }{
		{"alone", ""}, {"webhook", takesAll(b)}, {"hanging-webhook", hangs(b)},
	} {
		b.Run(c.name, func(b *testing.B) {
			own := filepath.Join(dir, c.name)
			if err := os.Mkdir(own, 0o700); err != nil && !os.IsExist(err) {
				b.Fatal(err)
			}
			if out, err := exec.Command("cp", filepath.Join(dir, "filled.db"), filepath.Join(own, "registry.db")).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			_ = os.Remove(filepath.Join(own, "spool.db"))
			address := unused(b)
			settings := fmt.Sprintf("[[server]]\naddress = \"127.0.0.1:1\"\n[server.auth]\nmaster_user = \"agent\"\npassword = \"x\"\n"+
				"[registry]\npath = \"registry.db\"\n[api]\nlisten = \"unix:%s/api.sock\"\n[notify]\nlisten = %q\npassword = \"secret\"\n", own, address)
			if c.hook != "" {
				settings += fmt.Sprintf("[[webhook]]\nname = \"app\"\nurl = %q\nsecret = \"whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=\"\n", c.hook)
			}
			if err := os.WriteFile(filepath.Join(own, "config.toml"), []byte(settings), 0o600); err != nil {
				b.Fatal(err)
			}
			service := measureService(b, binary, own)
			const rounds, each = 5, 4000
			var rates, bareRates, ratios, worst, bareWorst []float64
			for b.Loop() {
				for range rounds {
					rate, p99 := notifications(b, address, each, users, 32)
					bareRate, bareP99 := notifications(b, bare, each, users, 32)
					rates, bareRates, ratios = append(rates, rate), append(bareRates, bareRate), append(ratios, rate/bareRate)
					worst, bareWorst = append(worst, p99), append(bareWorst, bareP99)
				}
			}
			// One after the other, as a quiet mail server sends them.
			const quiet = 1000
			rate, p99 := notifications(b, address, quiet, users, 1)
			bareRate, bareP99 := notifications(b, bare, quiet, users, 1)
			b.ReportMetric(1000/rate, "ms-each-alone")
			b.ReportMetric(p99, "ms-p99-alone")
			b.ReportMetric(1000/bareRate, "bare-ms-each-alone")
			b.ReportMetric(bareP99, "bare-ms-p99-alone")
			b.ReportMetric(median(rates), "notifications/s")
			b.ReportMetric(median(bareRates), "bare-notifications/s")
			b.ReportMetric(median(ratios), "ratio")
			b.ReportMetric(median(worst), "p99-ms")
			b.ReportMetric(median(bareWorst), "bare-p99-ms")
			b.ReportMetric(memory(b, service.cmd.Process.Pid, "VmHWM:"), "MiB-peak")
			if err := service.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				b.Fatal(err)
			}
			if err := service.cmd.Wait(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// startRaw starts the yard, and returns where it listens.
func startRaw(b *testing.B, cmd *exec.Cmd) string {
	b.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func unused(b *testing.B) string {
	b.Helper()
	address, err := unusedAddress()
	if err != nil {
		b.Fatal(err)
	}
	return address
}

// takesAll is a webhook that takes whatever comes, hangs one that never answers.
func takesAll(b *testing.B) string {
	return hookURL(b, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
}

func hangs(b *testing.B) string {
	return hookURL(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
}

func hookURL(b *testing.B, handler http.HandlerFunc) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	b.Cleanup(func() { server.Close(); <-done })
	return "http://" + l.Addr().String()
}

var uid atomic.Uint32

// notifications sends so many as Dovecot would, each for another user, over some
// connections. It returns the rate, and the time that 99 of 100 did not exceed
// in ms.
func notifications(b *testing.B, address string, n, users, connections int) (rate, p99 float64) {
	b.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	defer client.CloseIdleConnections()
	times := make([]float64, n)
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for range connections {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				began := time.Now()
				body := fmt.Sprintf(`{"user":%q,"event":"messageNew","folder":"INBOX","imap-uidvalidity":1,"imap-uid":%d,`+
					`"from":"=?utf-8?q?B=C3=B8b?= <bob@example.org>","subject":"Lunch at noon?","snippet":"Shall we meet at the usual place?","unseen":3}`,
					registrytest.User(rand.IntN(users)), uid.Add(1))
				request, _ := http.NewRequest("PUT", "http://"+address+"/preliminary/http-notify/v1/notify", strings.NewReader(body))
				request.Header.Set("Content-Type", "application/json; charset=utf-8")
				request.SetBasicAuth("dovecot", "secret")
				response, err := client.Do(request)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
				if response.StatusCode != http.StatusOK {
					b.Error(response.Status)
					return
				}
				times[i] = time.Since(began).Seconds() * 1000
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	slices.Sort(times)
	return float64(n) / took.Seconds(), times[n*99/100]
}
