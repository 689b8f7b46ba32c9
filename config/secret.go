package config

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
)

// Secret says where a secret is: written into the file (NAME), in a file of
// its own (NAME_file), or printed by a command (NAME_command). The zero Secret
// is not set. However it is printed, logged or marshalled, it shows as ***.
type Secret struct {
	value   *string // a pointer, so that even fmt's reflection, where it cannot call Format, shows an address
	file    string
	command string
	origin  origin
}

// NewSecret returns a Secret that holds value, such as one typed at a prompt.
func NewSecret(value string) Secret { return Secret{value: &value} }

// IsSet tells whether any of the three forms is there.
func (s Secret) IsSet() bool { return s.value != nil || s.file != "" || s.command != "" }

// Key names the key in the file that holds the reference, such as
// server[0].auth.password_file, for messages.
func (s Secret) Key() string {
	if s.origin.key == "" {
		return "secret"
	}
	return s.origin.key + s.form()
}

// IsCommand tells whether reading the secret runs a command.
func (s Secret) IsCommand() bool { return s.command != "" }

func (s Secret) form() string {
	switch {
	case s.file != "":
		return formFile
	case s.command != "":
		return formCommand
	}
	return formInline
}

// reference is what may be shown of where the secret is.
func (s Secret) reference() string {
	switch {
	case s.file != "":
		return s.file
	case s.command != "":
		return s.command
	}
	return masked
}

// Format prints *** for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, masked) }

// String returns ***.
func (Secret) String() string { return masked }

// GoString returns ***.
func (Secret) GoString() string { return masked }

// MarshalText returns ***.
func (Secret) MarshalText() ([]byte, error) { return []byte(masked), nil }

// MarshalJSON returns "***".
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + masked + `"`), nil }

// LogValue returns ***.
func (Secret) LogValue() slog.Value { return slog.StringValue(masked) }

// URL is a URL that may hold a password, which is masked wherever it is shown.
// The zero URL is empty.
type URL struct {
	value *string // see Secret
}

// NewURL returns raw as a URL.
func NewURL(raw string) URL {
	if raw == "" {
		return URL{}
	}
	return URL{&raw}
}

// Reveal returns the URL with its password.
func (u URL) Reveal() string {
	if u.value == nil {
		return ""
	}
	return *u.value
}

// String masks the password in postgres://user:password@host/db and in
// ?password=, and parameters whose names tell of another secret. What it does not understand, such as "host=db password=x", it
// masks as a whole.
func (u URL) String() string {
	raw := u.Reveal()
	if raw == "" {
		return ""
	}
	parsed, err := url.Parse(raw)
	if err != nil || parsed.Scheme == "" || parsed.Host == "" {
		return masked
	}
	query := ""
	for i, pair := range strings.Split(parsed.RawQuery, "&") {
		name, _, found := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(name); err != nil || secretly(strings.ToLower(plain)) {
			pair = name
			if found {
				pair += "=" + masked
			}
		}
		if i > 0 {
			query += "&"
		}
		query += pair
	}
	parsed.RawQuery = query
	if _, ok := parsed.User.Password(); !ok {
		return parsed.String()
	}
	user := url.User(parsed.User.Username()).String()
	parsed.User = nil
	return strings.Replace(parsed.String(), "://", "://"+user+":"+masked+"@", 1)
}

// secretly tells whether the parameter of that name holds a secret.
func secretly(name string) bool {
	for _, part := range []string{"password", "secret", "token", "key", "sig"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// Format prints String for every verb.
func (u URL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) }

// GoString returns String.
func (u URL) GoString() string { return u.String() }

// MarshalText returns String.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// LogValue returns String.
func (u URL) LogValue() slog.Value { return slog.StringValue(u.String()) }
