package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"unicode/utf8"
)

// What can be wrong with an identity that was sent. These errors quote nothing
// of it: whoever reads them could use a signature.
var (
	// ErrUnsigned: it carries no signature, and unsigned ones are not accepted.
	ErrUnsigned = errors.New("identity is not signed")
	// ErrForged: its signature is not that of this name.
	ErrForged = errors.New("identity has a wrong signature")
	// ErrUnknownKey: it is signed by a key that is neither the new nor the old one.
	ErrUnknownKey = errors.New("identity is signed by a key that is not in use")
)

const (
	// MinKey is the least length of a key, in characters: 128 bits if they are
	// random hexadecimal digits. The hint in New's error makes 256.
	MinKey = 32
	// Overhead is what a signature adds to an identity, in bytes. None of them is
	// escaped in an entry's value.
	Overhead = 1 + idLength + macLength

	mark      = "~"
	idLength  = 4  // characters of base64 for 24 bits
	macLength = 16 // characters of base64 for 96 bits

	identityLabel = "dovepush identity v1\x00"
	keyIDLabel    = "dovepush identity key id v1"
)

// Signer signs and verifies. Its methods may be called by many goroutines at
// once.
type Signer struct {
	keys           []*key // the new one, and then the old one, if any
	acceptUnsigned bool
}

// key is a secret that was made ready for use.
type key struct {
	id     string
	hashes sync.Pool // of hash.Hash: a million identities are signed in one go
}

// New returns a Signer that signs with a key, and takes what was signed with
// either that or the old one, if old is not empty. With acceptUnsigned it also
// takes identities that carry no signature.
//
// A key is any text of MinKey characters or more, which nobody can guess: it
// counts as it is, blanks included. The errors do not quote it.
func New(newest, old string, acceptUnsigned bool) (*Signer, error) {
	s := &Signer{acceptUnsigned: acceptUnsigned}
	for i, text := range []string{newest, old} {
		if i > 0 && (text == "" || text == newest) {
			continue
		}
		if err := CheckKey(text); err != nil {
			return nil, fmt.Errorf("%s: %w", []string{"identity key", "old identity key"}[i], err)
		}
		s.keys = append(s.keys, newKey(text))
	}
	return s, nil
}

// CheckKey says what is wrong with a key, without showing it.
func CheckKey(text string) error {
	if n := utf8.RuneCountInString(text); n < MinKey {
		return fmt.Errorf("%d characters are too few, it needs %d or more: make one with \"openssl rand -base64 32\"", n, MinKey)
	}
	return nil
}

func newKey(text string) *key {
	k := &key{hashes: sync.Pool{New: func() any { return hmac.New(sha256.New, []byte(text)) }}}
	k.id = k.sum(idLength, keyIDLabel)
	return k
}

// sum returns so many characters of base64 of the HMAC of the parts together.
func (k *key) sum(length int, parts ...string) string {
	h := k.hashes.Get().(hash.Hash)
	defer k.hashes.Put(h)
	h.Reset()
	for _, p := range parts {
		h.Write([]byte(p)) // never fails
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:length*6/8])
}

func (k *key) sign(plain string) string {
	return plain + mark + k.id + k.sum(macLength, identityLabel, plain)
}

// Sign returns the plain identity with a signature behind it, whatever it ends
// in itself: to sign what is signed makes another identity. Overhead tells by
// how much it is longer.
func (s *Signer) Sign(plain string) string { return s.keys[0].sign(plain) }

// Verify returns what was signed, by either key. If unsigned identities are
// accepted, what does not have the form of a signed one is returned as it is.
// The error is ErrUnsigned, ErrForged or ErrUnknownKey.
func (s *Signer) Verify(sent string) (plain string, err error) {
	plain, id, mac, signed := split(sent)
	switch {
	case !signed && s.acceptUnsigned:
		return sent, nil
	case !signed:
		return "", ErrUnsigned
	}
	err = ErrUnknownKey
	for _, k := range s.keys {
		if k.id != id {
			continue
		}
		if hmac.Equal([]byte(mac), []byte(k.sum(macLength, identityLabel, plain))) {
			return plain, nil
		}
		err = ErrForged
	}
	return "", err
}

// Plain takes the signature, if any, off an identity that comes from a place of
// our own, where nobody forges any. What has the form of one that a forgotten key
// made loses it, too; what only looks like one of ours does not.
func (s *Signer) Plain(stored string) string {
	plain, err := s.Verify(stored)
	switch {
	case err == nil:
		return plain
	case errors.Is(err, ErrUnknownKey):
		plain, _, _, _ := split(stored)
		return plain
	}
	return stored
}

// Forms returns all identities from which Verify makes plain, the likeliest
// first: signed by the new key, by the old one, and not at all.
func (s *Signer) Forms(plain string) []string {
	var forms []string
	for _, k := range s.keys {
		forms = append(forms, k.sign(plain))
	}
	if _, _, _, looksSigned := split(plain); s.acceptUnsigned && !looksSigned {
		forms = append(forms, plain)
	}
	return forms
}

// split takes an identity of the form of a signed one apart. Nobody's name is
// empty, so a signature alone is none.
func split(sent string) (plain, id, mac string, signed bool) {
	at := len(sent) - Overhead
	if at <= 0 || !strings.HasPrefix(sent[at:], mark) {
		return "", "", "", false
	}
	signature := sent[at+len(mark):]
	for i := range len(signature) {
		switch c := signature[i]; {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return "", "", "", false
		}
	}
	return sent[:at], signature[:idLength], signature[idLength:], true
}
