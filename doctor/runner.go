package doctor

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"dovepush/config"
	"dovepush/doveadm"
	"dovepush/imapmeta"
	"dovepush/registry"
)

// Status is what became of a link.
type Status string

// The statuses.
const (
	OK   Status = "ok"
	Warn Status = "warn" // works, and should not stay so
	Fail Status = "fail"
	Skip Status = "skip" // not looked at; the detail says why
)

// Fault is what kind of trouble a failed link is, in the order of gravity.
type Fault int

// The faults, the least grave first.
const (
	None        Fault = iota
	Transient         // may work later
	Unavailable       // a server does not serve us, or a notification did not come
	Refused           // a login or password was refused
	Settings          // settings, secrets, the registry, or the spool
)

// Result is one link of the chain. Its texts may hold what strangers wrote, but
// no secret.
type Result struct {
	Link    string  `json:"link"`
	Server  string  `json:"server,omitempty"`
	At      string  `json:"at,omitempty"` // which of several: a webhook's name, or a DoveAdm endpoint's URL
	Status  Status  `json:"status"`
	Detail  string  `json:"detail"`
	Mend    string  `json:"mend,omitempty"` // what to do; several lines are several things
	Seconds float64 `json:"seconds"`
	Fault   Fault   `json:"-"`
}

// Verdict is what the walk came to.
type Verdict struct {
	Failed, Warned, Skipped int
	First                   string // the first link that failed
	Fault                   Fault  // the gravest
	Err                     error  // the context's, if it ended the walk
}

// step is a link that is still to be looked at.
type step struct {
	link, server string
	at           string   // which of several: a webhook, or a DoveAdm endpoint's URL
	needs        []string // links at the same place, of the same server, or of none
}

func (s step) id() string { return s.server + " " + s.at + " " + s.link }

// finding is what looking at a link came to.
type finding struct {
	status Status
	detail string
	mend   string
	fault  Fault
	took   time.Duration // 0: as long as looking took
}

func ok(detail string) finding { return finding{status: OK, detail: detail} }

func skip(detail string) finding { return finding{status: Skip, detail: detail} }

func warn(detail, mend string) finding { return finding{status: Warn, detail: detail, mend: mend} }

func fail(fault Fault, detail, mend string) finding {
	return finding{status: Fail, detail: detail, mend: mend, fault: fault}
}

// failure says what an error of a connector, of the registry or of the settings
// means.
func failure(err error) finding {
	mend := ""
	var exchange *imapmeta.Error
	if errors.As(err, &exchange) {
		mend = exchange.Hint
	}
	return fail(faultOf(err), err.Error(), mend)
}

func faultOf(err error) Fault {
	var setting *config.Error
	var secret *imapmeta.SecretError
	var e *imapmeta.Error
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	switch {
	case errors.As(err, &setting), errors.As(err, &secret):
		return Settings
	case is(registry.ErrFull, registry.ErrBusy):
		return Transient
	case is(registry.ErrPermission, registry.ErrNewer, registry.ErrForeign, registry.ErrCorrupt):
		return Settings
	case !errors.As(err, &e):
		return Unavailable
	case e.Kind == imapmeta.Retry:
		return Transient
	case is(imapmeta.ErrPlaintext) && e.Status == "":
		return Settings
	case e.Kind == imapmeta.User, is(imapmeta.ErrLogin, imapmeta.ErrPlaintext, doveadm.ErrKey, doveadm.ErrForbidden):
		return Refused
	}
	return Unavailable
}

// do looks at a link, unless one that it needs has failed, and reports it.
func (d *doctor) do(ctx context.Context, s step, look func() finding) Status {
	began := d.Now()
	f := skip("interrupted")
	if ctx.Err() == nil {
		if why := d.missing(s); why != "" {
			f = skip(why)
		} else {
			f = look()
		}
	}
	if f.took == 0 {
		f.took = d.Now().Sub(began)
	}
	d.tell(s, f)
	return f.status
}

// missing returns why a step cannot be done; empty: it can.
func (d *doctor) missing(s step) string {
	for _, need := range s.needs {
		for _, other := range []step{{need, s.server, s.at, nil}, {need, s.server, "", nil}, {need, "", "", nil}} {
			switch d.done[other.id()] {
			case Fail:
				return need + " failed"
			case Skip:
				return need + " was skipped"
			}
		}
	}
	return ""
}

// tell reports a link. One that is told more than once is as bad as its worst.
func (d *doctor) tell(s step, f finding) {
	d.note(s, f.status)
	r := Result{Link: s.link, Server: s.server, At: s.at, Status: f.status, Detail: f.detail, Mend: f.mend, Seconds: f.took.Seconds(), Fault: f.fault}
	d.verdict.add(r)
	d.Report(r)
}

// note is tell for a step that is no link, but that links need.
func (d *doctor) note(s step, status Status) {
	rank := []Status{"", OK, Warn, Skip, Fail}
	if slices.Index(rank, status) > slices.Index(rank, d.done[s.id()]) {
		d.done[s.id()] = status
	}
}

func (v *Verdict) add(r Result) {
	switch r.Status {
	case Fail:
		v.Failed++
		if v.First == "" {
			v.First = r.Name()
		}
		v.Fault = max(v.Fault, r.Fault)
	case Warn:
		v.Warned++
	case Skip:
		v.Skipped++
	}
}

// Name is the link's, with its server's or webhook's before it.
func (r Result) Name() string {
	if whose := cmp.Or(r.Server, r.At); whose != "" {
		return whose + ": " + r.Link
	}
	return r.Link
}
