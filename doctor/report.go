package doctor

import (
	"fmt"
	"strings"
	"time"
)

// Text is the link as people read it: a line, and the mend on lines of its own.
// It may hold what strangers wrote, but no line more for that.
func (r Result) Text() string {
	var b strings.Builder
	status := string(r.Status)
	if r.Status == Fail {
		status = "FAIL"
	}
	fmt.Fprintf(&b, "%-4s  %-28s  %s", status, flat(r.Name()), flat(r.Detail))
	if t := spent(r.Seconds); t != "" && r.Status != Skip {
		fmt.Fprintf(&b, "  [%s]", t)
	}
	b.WriteByte('\n')
	for line := range strings.SplitSeq(strings.TrimSpace(r.Mend), "\n") {
		if line != "" {
			fmt.Fprintf(&b, "      mend: %s\n", line)
		}
	}
	return b.String()
}

// Status is OK, Warn or Fail.
func (v Verdict) Status() Status {
	switch {
	case v.Failed > 0:
		return Fail
	case v.Warned > 0:
		return Warn
	}
	return OK
}

// Text is the verdict in one line, without its end. Like a link's it may hold
// what strangers wrote.
func (v Verdict) Text() string {
	var text string
	switch {
	case v.Failed == 1:
		text = fmt.Sprintf("1 link fails: %s", v.First)
	case v.Failed > 1:
		text = fmt.Sprintf("%d links fail; begin with the first: %s", v.Failed, v.First)
	case v.Err != nil:
		return "interrupted; nothing failed until then"
	case v.Warned > 0:
		text = "all links hold"
	default:
		text = "all is well"
	}
	if v.Warned > 0 {
		text += fmt.Sprintf(", with %s", count(v.Warned, "warning"))
	}
	return flat(text)
}

// count is "1 thing" or "2 things".
func count[N int | int64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// spent is a time in few digits; empty if it is not worth telling.
func spent(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Millisecond:
		return ""
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// flat is a text on one line.
func flat(s string) string { return strings.ReplaceAll(s, "\n", "; ") }
