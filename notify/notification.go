package notify

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"time"
)

// A Notification is what Dovecot told us of. In JSON, as in server-sent
// events, webhooks and "watch --json", absent members are left out. Whoever
// gets one must not change what Unseen and Fields point to: others have it too.
type Notification struct {
	// User is whose mail it is, of 1 to 1,024 bytes, without control
	// characters: what was sent as "user", without its signature if names are
	// signed.
	User string `json:"user"`
	// Sent is what was sent as "user", to the letter.
	Sent string `json:"-"`
	// Event is "messageNew", or another event as it was sent, up to 128 bytes.
	Event       string `json:"event,omitempty"`
	Folder      string `json:"folder,omitempty"`      // up to 4,096 bytes; "INBOX" from the ox driver
	UIDValidity uint32 `json:"uidvalidity,omitempty"` // 0: not told
	UID         uint32 `json:"uid,omitempty"`         // 0: not told
	// From, Subject and Snippet are private mail: text without control
	// characters, encoded words (RFC 2047) decoded, cut after 4,096 bytes.
	From    string `json:"from,omitempty"`
	Subject string `json:"subject,omitempty"`
	Snippet string `json:"snippet,omitempty"`
	// Unseen is how many mails in the folder are unseen; nil: not told, as by
	// Dovecot when it could not open the folder.
	Unseen   *int64    `json:"unseen,omitempty"`
	Received time.Time `json:"received_at,omitzero"` // UTC
	// Fields holds up to 32 members that are unknown here, up to 16 KiB in
	// sum. They may be private too.
	Fields map[string]json.RawMessage `json:"fields,omitempty"`
}

// Stripped returns the notification without anything of the mail itself, and
// without the fields of which nobody knows what they hold.
func (n Notification) Stripped() Notification {
	n.From, n.Subject, n.Snippet, n.Fields = "", "", "", nil
	return n
}

// Key identifies the event for ever, by user, event, folder, UIDVALIDITY and
// UID (RFC 9051 section 2.3.1.1): 32 hexadecimal digits, the same for each
// time that Dovecot sends it. It is empty if the UIDs were not told.
func (n Notification) Key() string {
	k, ok := n.key()
	if !ok {
		return ""
	}
	return hex.EncodeToString(k[:])
}

type key [16]byte

func (n *Notification) key() (k key, ok bool) {
	if n.UID == 0 || n.UIDValidity == 0 {
		return key{}, false
	}
	var room [256]byte
	b := room[:0]
	for _, part := range [...]string{n.User, n.Event, n.Folder} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part))) // or ("a", "b") and ("ab", "") were alike
		b = append(b, part...)
	}
	b = binary.BigEndian.AppendUint32(b, n.UIDValidity)
	b = binary.BigEndian.AppendUint32(b, n.UID)
	sum := sha256.Sum256(b)
	return key(sum[:16]), true
}
