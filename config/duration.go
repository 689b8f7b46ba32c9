package config

import (
	"fmt"
	"strings"
	"time"
)

// Duration is a time.Duration written as Go writes it, such as "30s", "1h30m"
// or "24h", and never negative.
type Duration time.Duration

// String leaves out the units that time.Duration pads with: 24h, not 24h0m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText returns String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts what time.ParseDuration does, but nothing negative.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%s is not a duration such as \"90s\", \"15m\" or \"24h\"", quote(string(text)))
	}
	if v < 0 {
		return fmt.Errorf("%s is negative", quote(string(text)))
	}
	*d = Duration(v)
	return nil
}
