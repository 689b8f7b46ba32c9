package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// endpointNews tells what becomes of a server's endpoints: the registry, for
// status in another process, and the log.
type endpointNews struct {
	registry *registry.Registry
	observe  agent.Observer // nil: nobody counts
	log      *slog.Logger
	server   string
	several  bool // if the only one is out, the server's circuit tells

	mu  sync.Mutex
	out map[string]bool
}

// noteTime bounds how long a note may wait for the registry: nothing depends on
// it.
const noteTime = 5 * time.Second

func (a *app) newEndpointNews(r *registry.Registry, s *config.Server, observe agent.Observer) *endpointNews {
	return &endpointNews{registry: r, observe: observe, log: a.log.With("server", s.Name), server: s.Name,
		several: len(s.Doveadm.Endpoints) > 1, out: make(map[string]bool)}
}

// changed takes the news of one endpoint.
func (n *endpointNews) changed(e doveadm.Endpoint) {
	n.mu.Lock()
	before := n.out[e.URL]
	n.out[e.URL] = e.Out
	n.mu.Unlock()
	log := n.log.With("endpoint", e.URL)
	switch {
	case !n.several:
	case e.Out && !before:
		log.Warn("DoveAdm endpoint is set aside", "err", e.Err, "hint", hintFor(e.Err), "check", e.CheckAt)
	case e.Out:
		log.Debug("DoveAdm endpoint still fails", "err", e.Err, "since", e.Since, "check", e.CheckAt)
	case before:
		log.Info("DoveAdm endpoint works again")
	}
	if err := n.note(e); err != nil {
		if n.observe != nil {
			n.observe.RegistryFailed("endpoint")
		}
		log.Warn("cannot note an endpoint's state, status will not tell of it", "err", err)
	}
}

func (n *endpointNews) note(e doveadm.Endpoint) error {
	ctx, cancel := context.WithTimeout(context.Background(), noteTime)
	defer cancel()
	if !e.Out {
		return n.registry.EndpointWorks(ctx, n.server, e.URL)
	}
	return n.registry.SetAside(ctx, registry.Endpoint{Server: n.server, URL: e.URL, Since: e.Since, CheckAt: e.CheckAt,
		Reason: string(e.Reason), Failure: registry.Failure{Kind: string(imapmeta.KindOf(e.Err)), Message: e.Err.Error()}})
}
