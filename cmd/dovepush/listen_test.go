package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// address is where the service says that it listens.
func (r *running) address(name string) string {
	r.t.Helper()
	var found []string
	eventually(r.t, "where it listens for "+name, func() error { // the log comes on its own way
		if found = regexp.MustCompile(`msg=listening for=` + name + ` on=(\S+)`).FindStringSubmatch(r.log.String()); found == nil {
			return errNotYet
		}
		return nil
	})
	return found[1]
}

// certificate writes one for 127.0.0.1, and its key.
func (w *site) certificate(serial int64) *x509.Certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	w.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

func TestAPIOverTCPNeedsTheTokenAndReloadsItWithTheCertificate(t *testing.T) {
	w := newSite(t, onlyOne(t))
	first := w.certificate(1)
	w.write("token", "first-token\n")
	w.more("[api]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\ntls_cert_file = \"cert.pem\"\ntls_key_file = \"key.pem\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n")
	r := w.start()
	get := func(cert *x509.Certificate, path, token string) (status int, serial int64) {
		t.Helper()
		roots := x509.NewCertPool()
		roots.AddCert(cert)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
		request, err := http.NewRequest("GET", "https://"+r.address("api")+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		return response.StatusCode, response.TLS.PeerCertificates[0].SerialNumber.Int64()
	}
	for token, want := range map[string]int{"": 401, "second-token": 401, "first-token": 200} {
		if status, serial := get(first, "/v1/registrations", token); status != want || serial != 1 {
			t.Errorf("token %q: %d, certificate %d", token, status, serial)
		}
	}
	if status, _ := get(first, "/readyz", ""); status != 200 {
		t.Errorf("readyz: %d", status)
	}
	second := w.certificate(2)
	w.write("token", "second-token\n")
	r.reload()
	for token, want := range map[string]int{"first-token": 401, "second-token": 200} {
		if status, serial := get(second, "/v1/registrations", token); status != want || serial != 2 {
			t.Errorf("after the reload, token %q: %d, certificate %d", token, status, serial)
		}
	}
	response, err := http.Get("http://" + r.address("metrics") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var text bytes.Buffer
	text.ReadFrom(response.Body)
	if !strings.Contains(text.String(), `dovepush_circuit_open{server="main"} 0`) || !strings.Contains(text.String(), `dovepush_api_requests_total{code="401",operation="list"} 3`) {
		t.Errorf("metrics:\n%s", text.String())
	}
	if log := r.log.String(); strings.Contains(log, "first-token") || strings.Contains(log, "second-token") {
		t.Errorf("the log holds a token\n%s", log)
	}
	r.stop()
}

func TestTCPWithoutATokenIsRefused(t *testing.T) {
	w := newSite(t, onlyOne(t))
	w.more("[api]\nlisten = \"127.0.0.1:0\"\n")
	if text := w.run(exitConfig, "serve"); !strings.Contains(text, "api.token") {
		t.Error(text)
	}
}

func TestSocketHasItsModeAndOutlivesNobody(t *testing.T) {
	w := newSite(t, onlyOne(t))
	w.more(fmt.Sprintf("[api]\nlisten = \"unix:%s\"\nmode = \"0640\"\n", w.socket()))
	r := w.start()
	if info, err := os.Stat(w.socket()); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if text := w.run(exitUnavailable, "serve"); !strings.Contains(text, "is dovepush serve running already?") {
		t.Error(text)
	}
	r.ask(http.StatusOK, "GET", "/readyz", "") // the second took nothing from it
	r.kill(syscall.SIGKILL)
	if _, err := os.Stat(w.socket()); err != nil {
		t.Fatalf("this test needs a socket that was left behind: %v", err)
	}
	r = w.start()
	r.ask(http.StatusOK, "GET", "/readyz", "")
	r.stop()
	if left, err := filepath.Glob(filepath.Join(w.dir, "*.sock")); err != nil || len(left) > 0 {
		t.Errorf("%q, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, ".dp*")); err != nil || len(left) > 0 {
		t.Errorf("%q, %v", left, err)
	}
	w.write("api.sock", "somebody's file")
	if text := w.run(exitConfig, "serve"); !strings.Contains(text, "is no socket") || w.read("api.sock") != "somebody's file" {
		t.Error(text)
	}
}

// systemd-socket-activate does what a .socket unit does.
func TestSocketFromSystemd(t *testing.T) {
	w := newSite(t, onlyOne(t))
	w.more("[api]\nlisten = \"\"\n")
	path := filepath.Join(w.dir, "activated.sock")
	log := new(lockedBuffer)
	cmd := exec.Command("systemd-socket-activate", "--listen="+path, "--fdname=api",
		"-E", "DOVEPUSH_CONFIG="+filepath.Join(w.dir, "config.toml"), "-E", "PATH", "dovepush", "serve")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, log)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the service removed systemd's socket: %v", err)
		}
	}()
	r := &running{t: t, log: log, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}, DisableKeepAlives: true,
	}}}
	eventually(t, "the socket", func() error { _, err := os.Stat(path); return err })
	if answer := r.ask(http.StatusOK, "PUT", "/v1/registrations/alice?wait=30s", ""); !strings.Contains(answer, `"state":"registered"`) {
		t.Error(answer)
	}
}

func TestSocketsThatAreNotOursAreRefused(t *testing.T) {
	w := newSite(t, onlyOne(t))
	path := filepath.Join(w.dir, "activated.sock")
	cmd := exec.Command("systemd-socket-activate", "--listen="+path, "--fdname=web",
		"-E", "DOVEPUSH_CONFIG="+filepath.Join(w.dir, "config.toml"), "-E", "PATH", "dovepush", "serve")
	log := new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the socket", func() error {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
		}
		return err
	})
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitConfig || !strings.Contains(log.String(), `named "web"`) {
		t.Errorf("exit status %d\n%s", code, log)
	}
}

// A service that cannot accept for the moment is still there.
func TestSocketOfABusyServiceIsNotTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "busy.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	full := false
	for range 8 { // nobody accepts
		conn, err := net.Dial("unix", path)
		if full = err != nil; full {
			break
		}
		defer conn.Close()
	}
	if !full {
		t.Fatal("this test needs a socket that cannot take another connection")
	}
	if l, _, err := listenUnix(path, 0o600); !errors.Is(err, errUnavailable) {
		t.Errorf("%v, %v", l, err)
	}
}
