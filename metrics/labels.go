package metrics

import (
	"strconv"

	"dovepush/agent"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// Every label but server and endpoint, which are from the settings, has a
// constant set of values, so that no mistake of a caller can fill a Prometheus,
// or carry a user's name there.
const (
	other     = "other" // what is none of the known
	noFailure = "none"  // the kind of what succeeded
)

// ops are the operations on the registry that are told apart when they fail:
// the agent's, the notes of endpoints, and a scrape's.
func ops() []string {
	return []string{"submit", "take", "record", "watch", "circuit", "endpoint", opBacklog, opChanged, opCount, opProven, opSpool, other}
}

// What a scrape does with the registry.
const (
	opBacklog = "backlog"
	opChanged = "changed"
	opCount   = "count"
	opProven  = "proven"
	opSpool   = "spool"
)

// states are those that a server's registrations are shown in, zeros included.
func states() []registry.State {
	return []registry.State{registry.Pending, registry.Registered, registry.Removing, registry.Conflict, registry.Failed}
}

// ends are the usual ends of an exchange. A server shows them from the start:
// the rate of a counter that appears with 1 is unknown.
func ends() []end {
	return []end{
		{agent.Added, ""}, {agent.Changed, ""}, {agent.Removed, ""}, {agent.Adopted, ""}, {agent.Unchanged, ""}, {agent.Conflict, ""},
		{agent.Failed, imapmeta.User}, {agent.Deferred, imapmeta.Retry}, {agent.Deferred, imapmeta.Server},
	}
}

// end is how an exchange came out.
type end struct {
	verdict agent.Verdict
	kind    imapmeta.Kind
}

func outcomeLabel(verdict agent.Verdict) string {
	switch verdict {
	case agent.Added, agent.Changed, agent.Removed, agent.Adopted, agent.Unchanged, agent.Conflict, agent.Failed, agent.Deferred:
		return string(verdict)
	}
	return other
}

func kindLabel(kind imapmeta.Kind) string {
	switch kind {
	case "":
		return noFailure
	case imapmeta.Retry, imapmeta.User, imapmeta.Server:
		return string(kind)
	}
	return other
}

// reasonLabel is why an endpoint is set aside.
func reasonLabel(reason string) string {
	switch reason {
	case "refused", "timeout", "closed", "tls", "http", "redirect", "key", "reply":
		return reason
	}
	return other
}

// proofs are what comes of users for whom notifications came.
func proofs() []string { return []string{"proven", "unknown", "failed", "dropped", other} }

// deliveries are what comes of an attempt to deliver to a webhook.
func deliveries() []string { return []string{"delivered", "refused", "failed", "dead", other} }

// codeLabel is an HTTP status code.
func codeLabel(status int) string {
	if status < 100 || status > 599 {
		return other
	}
	return strconv.Itoa(status)
}
