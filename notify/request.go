package notify

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"
)

const (
	maxBody = 64 << 10 // bytes
	// firstRead is room for the usual body. More is allocated as it arrives,
	// whatever the sender says how much will come.
	firstRead = 1 << 10
	// maxPooled bounds the buffers that are kept for the next request.
	maxPooled = 8 << 10
	// maxUnread is how much of a body that nobody wants net/http may read to
	// keep the connection.
	maxUnread = 4 << 10
)

// check looks at everything but the body. That somebody knows the password is
// found out first, but for the path, so that an admin can tell the two apart.
func (h *Handler) check(w http.ResponseWriter, r *http.Request) *refusal {
	if r.URL.Path != h.options.Path {
		return refuse(http.StatusNotFound, WrongPath, "there is nothing at this path")
	}
	if !h.authorized(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="dovepush", charset="UTF-8"`)
		return refuse(http.StatusUnauthorized, WrongCredentials, "the user name or the password is wrong, or missing")
	}
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		w.Header().Set("Allow", "PUT, POST")
		return refuse(http.StatusMethodNotAllowed, WrongMethod, "notifications are sent by PUT")
	}
	if !isJSON(r.Header) {
		return refuse(http.StatusUnsupportedMediaType, WrongMediaType, "the body must be JSON in UTF-8, and not compressed")
	}
	if r.ContentLength > maxBody {
		return refuse(http.StatusRequestEntityTooLarge, TooLarge, "the body is larger than 64 KiB")
	}
	return nil
}

// authorized compares user name and password (RFC 7617). How long that takes
// says nothing about them, their lengths included. An empty password, because
// its file was emptied, is nobody's.
func (h *Handler) authorized(r *http.Request) bool {
	username, password, required := h.options.Credentials()
	if !required {
		return true
	}
	if len(r.Header["Authorization"]) != 1 {
		return false
	}
	givenName, givenPassword, ok := r.BasicAuth()
	if !ok {
		return false
	}
	wantName, haveName := sha256.Sum256([]byte(username)), sha256.Sum256([]byte(givenName))
	want, have := sha256.Sum256([]byte(password)), sha256.Sum256([]byte(givenPassword))
	same := subtle.ConstantTimeCompare(wantName[:], haveName[:]) & subtle.ConstantTimeCompare(want[:], have[:])
	return same == 1 && password != ""
}

// isJSON takes JSON in UTF-8 (RFC 8259 section 8.1), and what does not say what
// it is.
func isJSON(header http.Header) bool {
	if coding := header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return false
	}
	switch header.Get("Content-Type") {
	case "", "application/json", "application/json; charset=utf-8": // the last is Dovecot's
		return true
	}
	kind, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || kind != "application/json" && (!strings.HasPrefix(kind, "application/") || !strings.HasSuffix(kind, "+json")) {
		return false
	}
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8") || strings.EqualFold(charset, "utf8")
}

// readBody reads the body into a buffer of the pool.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request) (*bytes.Buffer, *refusal) {
	body := r.Body
	if r.ContentLength < 0 { // otherwise net/http ends it there
		body = http.MaxBytesReader(w, body, maxBody)
	}
	b := h.buffers.Get().(*bytes.Buffer)
	err := fill(b, body)
	if err == nil {
		return b, nil
	}
	h.giveBack(b)
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, refuse(http.StatusRequestEntityTooLarge, TooLarge, "the body is larger than 64 KiB")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, refuse(http.StatusRequestTimeout, Slow, "the body did not come in time")
	}
	refused := refuse(http.StatusBadRequest, Malformed, "the body is not complete")
	refused.cause = err
	return nil, refused
}

// fill reads to the end. bytes.Buffer.ReadFrom would make room for 512 bytes
// more when all is here.
func fill(b *bytes.Buffer, body io.Reader) error {
	for {
		if b.Available() == 0 {
			b.Grow(max(firstRead, b.Len()))
		}
		room := b.AvailableBuffer()
		n, err := body.Read(room[:cap(room)])
		b.Write(room[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (h *Handler) giveBack(b *bytes.Buffer) {
	if b.Cap() <= maxPooled {
		b.Reset()
		h.buffers.Put(b)
	}
}

func newBuffers() *sync.Pool {
	return &sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, firstRead)) }}
}
