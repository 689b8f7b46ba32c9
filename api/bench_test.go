package api

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dovepush/agent"
	"dovepush/registry"
)

// BenchmarkRegister compares PUT with a handler that does nothing but one
// durable write to the same registry, over the same kind of connection.
func BenchmarkRegister(b *testing.B) {
	r, err := registry.Open(b.Context(), filepath.Join(b.TempDir(), "registry.db"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	bare := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user := strings.TrimPrefix(req.URL.Path, registrations+"/")
		err := r.Intend(req.Context(), registry.Intent{Key: registry.Key{User: user, Server: "main"}, Value: "user=" + user, Wanted: registry.Present})
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	for _, row := range []struct {
		name    string
		handler http.Handler
	}{
		{"bare", bare},
		{"api", New(Options{Agent: writing{r}, Registry: r})},
	} {
		b.Run(row.name, func(b *testing.B) { benchmarkPut(b, row.handler) })
	}
}

// writing is an agent that does what the bare handler does.
type writing struct{ registry *registry.Registry }

func (w writing) Submit(ctx context.Context, r agent.Request) (registry.Registration, error) {
	in := registry.Intent{Key: registry.Key{User: r.User, Server: "main"}, Value: "user=" + r.User, Wanted: registry.Present}
	err := w.registry.Intend(ctx, in)
	return registry.Registration{User: in.User, Server: in.Server, Value: in.Value, Wanted: in.Wanted, State: registry.Pending, NextAt: time.Now()}, err
}

func (writing) Await(context.Context, registry.Registration) (registry.Registration, bool, error) {
	return registry.Registration{}, false, nil
}

func benchmarkPut(b *testing.B, handler http.Handler) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := Server(handler, nil)
	done := make(chan error)
	go func() { done <- server.Serve(ln) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 256}
	client := &http.Client{Transport: transport}
	var n atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			user := "user" + time.Unix(n.Add(1), 0).UTC().Format("20060102150405") + "@example.com"
			req, err := http.NewRequestWithContext(b.Context(), "PUT", "http://"+ln.Addr().String()+registrations+"/"+user, nil)
			if err != nil {
				b.Error(err)
				return
			}
			res, err := client.Do(req)
			if err != nil || res.StatusCode != http.StatusAccepted {
				b.Errorf("%v %v", res, err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body) // or the connection is not used again
			res.Body.Close()
		}
	})
	b.ReportMetric(float64(n.Load())/b.Elapsed().Seconds(), "requests/s")
	transport.CloseIdleConnections()
	_ = server.Close()
	<-done
}
