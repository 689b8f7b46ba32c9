package notify

import (
	"net/http"
	"time"
)

// Reason is why a request was refused.
type Reason string

// The reasons, and the status that goes with each.
const (
	WrongPath        Reason = "path"        // 404: the driver's URL is not Options.Path
	WrongMethod      Reason = "method"      // 405: neither PUT nor POST, yet with the right password
	WrongCredentials Reason = "credentials" // 401: wrong user name or password, or none
	TooLarge         Reason = "too large"   // 413: over 64 KiB
	WrongMediaType   Reason = "media type"  // 415: not JSON in UTF-8, or compressed
	Malformed        Reason = "malformed"   // 400: not what Dovecot sends; Detail says what is wrong
	Forged           Reason = "forged"      // 403: the signature of the name is missing or wrong
	Spool            Reason = "spool"       // 503: it could not be kept for the webhooks; sent again, it may be
	Slow             Reason = "slow"        // 408: the body did not come in time
	Internal         Reason = "internal"    // 500: a defect of ours; it is in the log
)

// A Refusal is a request that was refused, for the admin to see. It holds
// nothing of the body.
type Refusal struct {
	At     time.Time `json:"at"`               // UTC
	Remote string    `json:"remote,omitempty"` // IP address; empty over a UNIX socket
	Status int       `json:"status"`
	Reason Reason    `json:"reason"`
	Detail string    `json:"detail,omitempty"` // what was wrong, in words of ours
}

// Result is what came of a request, as the label of a metric: Accepted,
// Duplicate, or a Reason in snake case.
type Result string

// Results other than refusals.
const (
	Accepted  Result = "accepted"
	Duplicate Result = "duplicate" // answered as if accepted, and not handed on again
)

// Results returns every Result that there is.
func Results() []Result {
	return []Result{Accepted, Duplicate, "path", "method", "credentials", "too_large", "media_type", "malformed", "forged", "spool", "slow", "internal"}
}

func (r Reason) result() Result {
	switch r {
	case TooLarge:
		return "too_large"
	case WrongMediaType:
		return "media_type"
	}
	return Result(r)
}

// A refusal is why a request is refused, and what its sender is told.
type refusal struct {
	status int
	reason Reason
	detail string // for the admin and the sender
	cause  error  // for the log, at debug
}

func (r *refusal) Error() string { return string(r.reason) + ": " + r.detail }

func refuse(status int, reason Reason, detail string) *refusal {
	return &refusal{status: status, reason: reason, detail: detail}
}

func malformed(err error) *refusal {
	return refuse(http.StatusBadRequest, Malformed, err.Error())
}
