package main

import (
	"context"
	"fmt"
	"time"

	"dovepush/agent"
	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// maxInFlight bounds how many users of a server are worked on at once: each
// holds a claim.
const maxInFlight = 4096

// client is a client of a server's DoveAdm API.
type client struct {
	*doveadm.Client
	server *config.Server
}

// connect makes the server number i for the agent. Its DoveAdm client, if it has
// one, joins the crew: it is the connector, or only tells who exists.
func (a *app) connect(c *config.Config, i int, r *registry.Registry, password *config.Secret, observe agent.Observer, w *crew) (agent.Server, error) {
	s := &c.Servers[i]
	made := agent.Server{Name: s.Name, Timeout: time.Duration(s.Timeout), MaxConnections: inFlight(s)}
	if s.HasDoveadm() {
		news := a.newEndpointNews(r, s, observe)
		api, err := newDoveadm(i, s, news.changed)
		if err != nil {
			return made, err
		}
		w.clients = append(w.clients, client{api, s})
		made.Entries, made.Exists, made.LogsNobodyIn = api, api.Exists, true
	}
	if s.Connector == config.ConnectorIMAP {
		entries, err := newIMAP(i, s, password)
		if err != nil {
			return made, err
		}
		made.Entries, made.LogsNobodyIn, made.LoginsPerSecond = entries, false, s.MaxLoginsPerSecond
	}
	return made, nil
}

// inFlight is how many of a server's users are worked on at once.
func inFlight(s *config.Server) int {
	if s.Connector == config.ConnectorIMAP {
		return s.MaxConnections
	}
	return min(s.Doveadm.MaxConnections*s.Doveadm.Batch*len(s.Doveadm.Endpoints), maxInFlight)
}

// newIMAP makes the connector over IMAP.
func newIMAP(i int, s *config.Server, password *config.Secret) (*imapmeta.Client, error) {
	tls, err := s.TLSConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	auth := imapmeta.Auth{
		Mechanism:       imapmeta.Mechanism(s.Auth.Mechanism),
		MasterUser:      s.Auth.MasterUser,
		MasterSeparator: s.Auth.MasterSeparator,
	}
	secret := s.Auth.Password
	if password != nil {
		secret = *password
		auth.MasterUser, auth.MasterSeparator = "", ""
		if auth.Mechanism == imapmeta.External {
			auth.Mechanism = imapmeta.Plain
		}
	}
	auth.Secret = func(ctx context.Context, user string) (string, error) {
		return secret.Read(ctx, "DOVEPUSH_USER="+user)
	}
	client, err := imapmeta.New(imapmeta.Options{
		Address:        s.Address,
		TLS:            imapmeta.TLSMode(s.TLS),
		TLSConfig:      tls,
		AllowPlaintext: s.AllowPlaintext,
		Auth:           auth,
		Timeout:        time.Duration(s.Timeout),
		MaxConnections: s.MaxConnections,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: server[%d]: %w", errConfig, i, err)
	}
	return client, nil
}

// newDoveadm makes a client of the DoveAdm API. changed may be nil.
func newDoveadm(i int, s *config.Server, changed func(doveadm.Endpoint)) (*doveadm.Client, error) {
	tls, err := s.DoveadmTLSConfig()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	secret, basic := s.Doveadm.APIKey, false
	if !secret.IsSet() {
		secret, basic = s.Doveadm.Password, true
	}
	made, err := doveadm.New(doveadm.Options{
		Endpoints:      s.Doveadm.Endpoints,
		Secret:         func(ctx context.Context) (string, error) { return secret.Read(ctx) },
		Basic:          basic,
		TLSConfig:      tls,
		MaxConnections: s.Doveadm.MaxConnections,
		Batch:          s.Doveadm.Batch,
		ConnectTimeout: time.Duration(s.Doveadm.ConnectTimeout),
		ReadTimeout:    time.Duration(s.Doveadm.ReadTimeout),
		CheckInterval:  time.Duration(s.Doveadm.CheckInterval),
		Timeout:        time.Duration(s.Timeout),
		Changed:        changed,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: server[%d].doveadm: %w", errConfig, i, err)
	}
	return made, nil
}
