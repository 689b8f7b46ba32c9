package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxBody    = 64 << 10 // bytes
	maxWait    = time.Minute
	minExpires = time.Second // as for "dovepush register --expires"
)

// query holds the parameters of a request: each at most once.
type query map[string]string

// parameters reads the query and refuses what is not known: a misspelt "force"
// must not pass for none.
func parameters(r *http.Request, known ...string) (query, error) {
	values, err := parseQuery(r)
	if err != nil {
		return nil, err
	}
	return values.once(known...)
}

// repeated is parameters where one may stand several times. The first returned
// are its values.
func repeated(r *http.Request, name string, once ...string) ([]string, query, error) {
	values, err := parseQuery(r)
	if err != nil {
		return nil, nil, err
	}
	list := values[name]
	for _, value := range list {
		if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
			return nil, nil, invalid(fmt.Sprintf("Send the parameter %q in UTF-8, without NUL.", name))
		}
	}
	delete(values, name)
	q, err := values.once(append(once, name)...)
	return list, q, err
}

// sentQuery is a query as it was sent.
type sentQuery url.Values

func parseQuery(r *http.Request) (sentQuery, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid("Write the query as name=value, percent-encoded and joined by &.")
	}
	return sentQuery(values), nil
}

func (values sentQuery) once(known ...string) (query, error) {
	q := query{}
	for name, list := range values {
		switch {
		case !slices.Contains(known, name) && len(known) == 1:
			return nil, invalid(fmt.Sprintf("There is no parameter %.64q here; this request takes %s.", name, known[0]))
		case !slices.Contains(known, name):
			return nil, invalid(fmt.Sprintf("There is no parameter %.64q here; this request takes %s.", name, strings.Join(known, ", ")))
		case len(list) > 1:
			return nil, invalid(fmt.Sprintf("Send the parameter %q once.", name))
		case !utf8.ValidString(list[0]), strings.ContainsRune(list[0], 0):
			return nil, invalid(fmt.Sprintf("Send the parameter %q in UTF-8, without NUL.", name))
		}
		q[name] = list[0]
	}
	return q, nil
}

// wait is how long the client wants to wait for the outcome; 0: not at all.
func (q query) wait() (time.Duration, error) {
	text, given := q["wait"]
	if !given {
		return 0, nil
	}
	wait, err := time.ParseDuration(text)
	if err != nil || wait <= 0 || wait > maxWait {
		return 0, invalid(`Write wait as a duration of more than 0 and at most 60s, such as "5s".`)
	}
	return wait, nil
}

func (q query) boolean(name string) (bool, error) {
	switch text, given := q[name]; {
	case !given, text == "false":
		return false, nil
	case text == "true":
		return true, nil
	}
	return false, invalid(fmt.Sprintf("Write %s=true or %s=false.", name, name))
}

// whole reads a whole number; fallback if it is not given.
func (q query) whole(name string, fallback, low, high int) (int, error) {
	text := q[name]
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high || text[0] == '+' {
		return 0, invalid(fmt.Sprintf("Write %s as a whole number from %d to %d.", name, low, high))
	}
	return n, nil
}

// wish is the body of PUT.
type wish struct {
	identity string        // empty: the default one
	expires  time.Duration // 0: never
	force    bool
}

// readWish reads a body that may be missing. It is read by token, for
// encoding/json takes a key in any case, null for anything, and the last of
// two equal keys, and each of these would make another wish than was meant.
func readWish(w *answer, r *http.Request) (wish, error) {
	body, err := readBody(w, r)
	if err != nil || len(body) == 0 {
		return wish{}, err
	}
	if err := isJSON(r.Header); err != nil {
		return wish{}, err
	}
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		return wish{}, invalid("Send a JSON object: " + err.Error() + ".")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if start, _ := d.Token(); start != json.Delim('{') {
		return wish{}, invalid(`Send a JSON object, such as {"identity": "3@7"}.`)
	}
	var wanted wish
	seen := map[string]bool{}
	for d.More() {
		token, _ := d.Token() // whole has been found to be JSON
		key, _ := token.(string)
		if seen[key] {
			return wish{}, invalid(fmt.Sprintf("Send %.64q once.", key))
		}
		seen[key] = true
		value, err := d.Token()
		if err != nil { // a number that no float64 holds
			return wish{}, invalid("Send a JSON object: " + err.Error() + ".")
		}
		if err := wanted.set(key, value); err != nil {
			return wish{}, err
		}
	}
	return wanted, nil
}

// set takes one member of the body. Its value is a json.Token.
func (w *wish) set(key string, value json.Token) error {
	var ok bool
	switch key {
	case "identity":
		w.identity, ok = value.(string)
		// What is no UTF-8, be it as it is or as "\ud800", has become U+FFFD.
		if !ok || w.identity == "" || strings.ContainsRune(w.identity, utf8.RuneError) {
			return invalid(`Send identity as a string in UTF-8 that is not empty, or leave it out for the default one.`)
		}
	case "expires_in":
		text, _ := value.(string)
		var err error
		if w.expires, err = time.ParseDuration(text); err != nil || w.expires < minExpires {
			return invalid(`Send expires_in as a duration of at least 1s, such as "720h", or leave it out for a registration that lasts.`)
		}
	case "force":
		if w.force, ok = value.(bool); !ok {
			return invalid("Send force as true or false, without quotes.")
		}
	default:
		return invalid(fmt.Sprintf("There is no member %.64q; the body takes identity, expires_in and force.", key))
	}
	return nil
}

// isJSON wants application/json, in UTF-8 (RFC 8259 section 8.1) and not
// compressed.
func isJSON(header http.Header) error {
	kind, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	charset, others := params["charset"], len(params)
	if charset != "" {
		others--
	}
	switch {
	case err != nil, kind != "application/json", others > 0, charset != "" && !strings.EqualFold(charset, "utf-8"):
		return plain(http.StatusUnsupportedMediaType, "Send the body as JSON, with Content-Type: application/json.")
	case header.Get("Content-Encoding") != "" && !strings.EqualFold(header.Get("Content-Encoding"), "identity"):
		return plain(http.StatusUnsupportedMediaType, "Send the body without Content-Encoding.")
	}
	return nil
}

var tooLarge = plain(http.StatusRequestEntityTooLarge, "Send a body of at most 64 KiB.")

func readBody(w *answer, r *http.Request) ([]byte, error) {
	if r.ContentLength > maxBody { // who expects 100 Continue is spared the sending
		return nil, tooLarge
	}
	// It wants the ResponseWriter of net/http itself, to end the connection.
	body, err := io.ReadAll(http.MaxBytesReader(w.ResponseWriter, r.Body, maxBody))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge
	case err != nil:
		return nil, invalid("Send the whole body within 30 seconds: reading it failed.")
	}
	return body, nil
}

// noBody refuses a body where none is looked at: {"force": true} must not be
// overlooked.
func noBody(r *http.Request) error {
	if _, err := io.ReadFull(r.Body, make([]byte, 1)); errors.Is(err, io.EOF) {
		return nil
	}
	return invalid("Send no body with this method; parameters stand in the query.")
}
