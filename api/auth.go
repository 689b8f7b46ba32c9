package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// authorize wants the bearer token (RFC 6750), where one is required. How long
// the comparison takes says nothing about the token, its length included.
func (h *Handler) authorize(w *answer, r *http.Request) error {
	token, required := h.options.Token()
	if !required {
		return nil
	}
	const realm = `Bearer realm="dovepush"`
	given, ok := bearer(r.Header.Values("Authorization"))
	if !ok {
		w.Header().Set("WWW-Authenticate", realm)
		return plain(http.StatusUnauthorized, "Send the token of api.token: Authorization: Bearer TOKEN.")
	}
	want, have := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(given))
	if subtle.ConstantTimeCompare(want[:], have[:]) != 1 {
		w.Header().Set("WWW-Authenticate", realm+`, error="invalid_token"`)
		return plain(http.StatusUnauthorized, "This is not the token of api.token; send that one.")
	}
	return nil
}

// bearer returns the token of the only Authorization field. It is never empty:
// should ours be, because its file was emptied, nobody has it.
func bearer(fields []string) (string, bool) {
	if len(fields) != 1 {
		return "", false
	}
	scheme, token, found := strings.Cut(fields[0], " ")
	if token = strings.Trim(token, " "); !found || token == "" || !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	return token, true
}
