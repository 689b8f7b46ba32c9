package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"

	"dovepush/config"
)

const mendService = "systemctl start dovepush, and see journalctl -u dovepush; without it changes are made by commands and cron only, and nothing is received"

// checkService asks the service's API how it is.
func (d *doctor) checkService(ctx context.Context) {
	api := &d.config.API
	d.do(ctx, step{link: "service"}, func() finding {
		if api.Listen == "" {
			return skip("api.listen is empty: whether a service runs is not known")
		}
		alive, text, err := d.ask(ctx, "/healthz")
		if errors.Is(err, fs.ErrPermission) {
			return warn("whether it runs cannot be seen: "+err.Error(), "run doctor as root, or as a member of the group of "+api.Listen)
		}
		if err != nil {
			return warn("not running: "+err.Error(), mendService)
		}
		d.serving = true
		if alive != http.StatusOK {
			return fail(Unavailable, "runs, but its wheels do not turn: "+text, "systemctl restart dovepush; its log says why")
		}
		ready, text, err := d.ask(ctx, "/readyz")
		switch {
		case err != nil:
			return fail(Transient, err.Error(), mendService)
		case ready != http.StatusOK:
			return fail(Transient, "runs, but is not ready: "+text, "journalctl -u dovepush says why")
		}
		return ok("runs and is ready, at " + api.Listen)
	})
}

// ask sends a GET to the service and returns the status, and what it says if
// that is not 200.
func (d *doctor) ask(ctx context.Context, path string) (status int, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*d.Wait.Connect)
	defer cancel()
	network, address := config.ListenAddress(d.config.API.Listen)
	scheme, host := "http", "localhost"
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, here(network, address))
		},
	}
	if network == "tcp" {
		own, err := d.config.API.TLSConfig()
		if err != nil {
			return 0, "", err
		}
		if own != nil {
			scheme = "https"
			transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, VerifyConnection: sameCertificate(own)}
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, "", bare(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 512))
	return response.StatusCode, fmt.Sprintf("HTTP %d: %s", response.StatusCode, strings.TrimSpace(string(body))), nil
}

// sameCertificate wants the certificate that the settings have: nobody else's
// listens under our settings' address, whatever name it bears.
func sameCertificate(own *tls.Config) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 || !bytes.Equal(state.PeerCertificates[0].Raw, own.Certificates[0].Certificate[0]) {
			return errors.New("another certificate than api.tls_cert_file: another program, or the service was not reloaded")
		}
		return nil
	}
}

// here is an address to connect to on this machine, where one that stands for
// all is listened on.
func here(network, address string) string {
	if network != "tcp" {
		return address
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}
