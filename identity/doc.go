// Package identity signs identities, so that nobody can make up one that the
// agent did not hand out.
//
// Dovecot's ox driver sends, with user_from_metadata, what stands behind user=
// in the user's own metadata entry. A user who can write his metadata could put
// somebody else's name there, and his mail would be announced as the other's. So
// what stands there may carry a message authentication code of the name. The
// usual order of calls:
//
//	signer, err := identity.New(key, oldKey, false)
//	stored := signer.Sign("alice")        // into the entry and the registry
//	plain, err := signer.Verify(received) // what a notification names
//
// A signed identity is the plain one and 21 characters:
//
//	plain "~" key-id MAC
//
// with the first 24 bits of HMAC-SHA256(key, "dovepush identity key id v1") as
// key-id, and the first 96 bits of HMAC-SHA256(key, "dovepush identity v1" NUL
// plain) as MAC, both in base64url without padding (RFC 4648 section 5). The key
// is the text as it is given: HMAC itself brings it to length (RFC 2104), and the
// two uses of it differ by their messages.
//
// # What it protects from, and what not
//
// Who does not know the key can neither make up a signature nor move one to
// another name: a guess is right once in 2^96, and each costs a notification.
// The key id tells nothing about the key but whether two are the same.
//
// A signed identity is worth as much as a password that can only be used to
// pretend that the user got mail. He may use his own again whenever he likes, and
// keep it when he is unregistered, until the key is changed. Somebody
// else's can be copied by whoever gets to see it: it is as secret as the
// mailbox's private metadata, the registry, and the notifications themselves.
// Nothing is protected from the master user, from root on any of the hosts, nor
// from who can send notifications: what else these hold is not signed.
//
// # Changing the key
//
// With a new key and the old one, both kinds of signatures are right, and all
// that is signed from then on is so with the new key. When every entry has been
// written anew, the old key can go. Before signing is demanded, unsigned
// identities may be accepted for as long as that takes; they protect from nothing.
package identity
