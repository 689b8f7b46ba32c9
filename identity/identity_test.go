package identity_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"dovepush/identity"
	"dovepush/imapmeta"
)

const (
	keyA = "correct horse battery staple, twice over"
	keyB = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" // longer than SHA-256's block
	keyC = "a third key, which is thirty-two"                                                 // as short as it may be
)

func signer(t testing.TB, key, old string, acceptUnsigned bool) *identity.Signer {
	t.Helper()
	s, err := identity.New(key, old, acceptUnsigned)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSignatureIsWhatOpenSSLMakesOfIt has vectors of
//
//	printf 'dovepush identity key id v1' | openssl dgst -sha256 -hmac KEY     # the first 3 bytes
//	printf 'dovepush identity v1\0alice' | openssl dgst -sha256 -hmac KEY     # the first 12
func TestSignatureIsWhatOpenSSLMakesOfIt(t *testing.T) {
	for _, v := range []struct{ key, plain, want string }{
		{keyA, "alice", "alice~3eUSgyggHsyTkgpCU5Um"},
		{keyA, "3@7", "3@7~3eUSq34FheQoexwsFHWV"},
		{keyA, "jörg@example.com", "jörg@example.com~3eUSe6cq5IIOwiKJHGAD"},
		{keyB, "alice", "alice~x2qd9AKlqpAFhwuTCgKv"},
		{keyB, "3@7", "3@7~x2qdtk6daWBh1TyqpY4C"},
		{keyB, "jörg@example.com", "jörg@example.com~x2qdkZu1q71pxSp2GUaw"},
	} {
		s := signer(t, v.key, "", false)
		if got := s.Sign(v.plain); got != v.want {
			t.Errorf("Sign(%q) = %q, want %q", v.plain, got, v.want)
		}
		if plain, err := s.Verify(v.want); plain != v.plain || err != nil {
			t.Errorf("Verify(%q) = %q, %v", v.want, plain, err)
		}
	}
}

func TestVerifyTellsWhatIsWrong(t *testing.T) {
	a, b := signer(t, keyA, "", false), signer(t, keyB, "", false)
	rotating, open := signer(t, keyB, keyA, false), signer(t, keyB, keyA, true)
	alice := a.Sign("alice")
	looksSigned := "alice~" + strings.Repeat("A", 20) // is a name all the same
	for _, test := range []struct {
		name   string
		signer *identity.Signer
		sent   string
		plain  string
		err    error
	}{
		{"its own", a, alice, "alice", nil},
		{"another's name before a right signature", a, "bob" + alice[5:], "", identity.ErrForged},
		{"more before it", a, "x" + alice, "", identity.ErrForged},
		{"less before it", a, alice[1:], "", identity.ErrForged},
		{"nothing before it", a, alice[5:], "", identity.ErrUnsigned},
		{"another letter in it", a, alice[:len(alice)-1] + "n", "", identity.ErrForged},
		{"other letters", a, strings.ToLower(alice), "", identity.ErrUnknownKey},
		{"a letter less", a, alice[:len(alice)-1], "", identity.ErrUnsigned},
		{"a letter more", a, alice + "A", "", identity.ErrUnsigned},
		{"base64 of the other kind", a, alice[:len(alice)-1] + "+", "", identity.ErrUnsigned},
		{"something behind it", a, alice + "\n", "", identity.ErrUnsigned},
		{"no signature", a, "alice", "", identity.ErrUnsigned},
		{"nothing", a, "", "", identity.ErrUnsigned},
		{"another's key", a, b.Sign("alice"), "", identity.ErrUnknownKey},
		{"the key's id, another key's code", a, alice[:len(alice)-16] + b.Sign("alice")[len(alice)-16:], "", identity.ErrForged},

		{"the new key", rotating, b.Sign("alice"), "alice", nil},
		{"the old key", rotating, alice, "alice", nil},
		{"the old key's id, the new key's code", rotating, alice[:len(alice)-16] + b.Sign("alice")[len(alice)-16:], "", identity.ErrForged},
		{"no signature while keys change", rotating, "alice", "", identity.ErrUnsigned},

		{"no signature, accepted", open, "alice", "alice", nil},
		{"an old one, accepted", open, alice, "alice", nil},
		{"forged, where none is needed", open, "bob" + alice[5:], "", identity.ErrForged},
		{"a name that looks signed, unsigned", open, looksSigned, "", identity.ErrUnknownKey},

		{"a name that looks signed", a, a.Sign(looksSigned), looksSigned, nil},
		{"a name that is signed", a, a.Sign(alice), alice, nil},
		{"a name that another key signed", a, a.Sign(b.Sign("alice")), b.Sign("alice"), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if plain, err := test.signer.Verify(test.sent); plain != test.plain || !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Errorf("Verify(%q) = %q, %v; want %q, %v", test.sent, plain, err, test.plain, test.err)
			}
		})
	}
}

func TestPlainTakesOffOnlyWhatIsASignature(t *testing.T) {
	a, b, c := signer(t, keyA, "", false), signer(t, keyB, "", false), signer(t, keyC, "", false)
	for _, unsigned := range []bool{false, true} {
		s := signer(t, keyB, keyA, unsigned)
		for stored, want := range map[string]string{
			"alice":                     "alice",
			"":                          "",
			a.Sign("alice"):             "alice",
			b.Sign("alice"):             "alice",
			c.Sign("alice"):             "alice", // a key forgotten by now
			b.Sign(b.Sign("alice")):     b.Sign("alice"),
			"bob" + a.Sign("alice")[5:]: "bob" + a.Sign("alice")[5:], // nobody's signature
			a.Sign("alice")[5:]:         a.Sign("alice")[5:],
			a.Sign("alice")[:10] + b.Sign("alice")[10:]: a.Sign("alice")[:10] + b.Sign("alice")[10:],
			"alice~not-quite-a-signature-at-all":        "alice~not-quite-a-signature-at-all",
		} {
			if got := s.Plain(stored); got != want {
				t.Errorf("Plain(%q) = %q, want %q", stored, got, want)
			}
			if got, want := current(s, stored), stored == b.Sign("alice") || stored == b.Sign(b.Sign("alice")); got != want {
				t.Errorf("Current(%q) = %v", stored, got)
			}
			if again := s.Sign(s.Plain(stored)); stored != "" && (!current(s, again) || (again == stored) != current(s, stored)) {
				t.Errorf("%q is current: %v, but is signed anew as %q", stored, current(s, stored), again)
			}
		}
	}
}

func TestFormsAreAllThatStandForAName(t *testing.T) {
	a, b := signer(t, keyA, "", false), signer(t, keyB, "", false)
	for _, test := range []struct {
		signer *identity.Signer
		plain  string
		want   []string
	}{
		{a, "alice", []string{a.Sign("alice")}},
		{signer(t, keyA, keyA, false), "alice", []string{a.Sign("alice")}},
		{signer(t, keyB, keyA, false), "alice", []string{b.Sign("alice"), a.Sign("alice")}},
		{signer(t, keyB, keyA, true), "alice", []string{b.Sign("alice"), a.Sign("alice"), "alice"}},
		{signer(t, keyA, "", true), b.Sign("alice"), []string{a.Sign(b.Sign("alice"))}}, // unsigned it would be taken for signed
	} {
		got := test.signer.Forms(test.plain)
		if !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, want %q", test.plain, got, test.want)
		}
		for _, form := range got {
			if plain, err := test.signer.Verify(form); plain != test.plain || err != nil {
				t.Errorf("Verify(%q) = %q, %v", form, plain, err)
			}
		}
	}
}

func TestShortKeysAreRefusedWithoutBeingQuoted(t *testing.T) {
	for _, test := range []struct{ key, old, want string }{
		{"", "", "identity key: 0 characters"},
		{keyC[1:], "", "identity key: 31 characters"},
		{strings.Repeat("ä", 31), "", "identity key: 31 characters"},
		{keyA, "hunter2", "old identity key: 7 characters"},
	} {
		_, err := identity.New(test.key, test.old, false)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || !strings.Contains(err.Error(), "openssl rand -base64 32") {
			t.Errorf("%q, %q: %v", test.key, test.old, err)
		} else if key := test.key + test.old; key != "" && strings.Contains(err.Error(), key) {
			t.Errorf("the key is quoted: %v", err)
		}
	}
	signer(t, keyC, "", false)
}

func TestErrorsQuoteNoSignature(t *testing.T) {
	a := signer(t, keyA, "", false)
	for _, sent := range []string{"bob" + a.Sign("alice")[5:], signer(t, keyB, "", false).Sign("alice"), "alice"} {
		_, err := a.Verify(sent)
		if err == nil || strings.Contains(err.Error(), "alice") || strings.Contains(err.Error(), sent[len(sent)-5:]) {
			t.Errorf("%q: %v", sent, err)
		}
	}
}

// The longest name that fits unsigned does not fit signed, by Overhead.
func TestSignatureStandsUnescapedInAValue(t *testing.T) {
	s := signer(t, keyA, "", false)
	longest := imapmeta.MaxValue - len("user=") - identity.Overhead
	for _, plain := range []string{"alice", "a\tb~\x01", strings.Repeat("x", longest)} {
		value, err := imapmeta.NewValue(s.Sign(plain))
		if err != nil {
			t.Fatal(err)
		}
		bare, err := imapmeta.NewValue(plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(value) != len(bare)+identity.Overhead || !strings.HasPrefix(string(value), string(bare)+"~") {
			t.Errorf("%q, unsigned %q", value, bare)
		}
		sent, _ := value.Identity()
		if got, err := s.Verify(sent); got != plain || err != nil {
			t.Errorf("%q came back as %q, %v", plain, got, err)
		}
	}
	if _, err := imapmeta.NewValue(s.Sign(strings.Repeat("x", longest+1))); !errors.Is(err, imapmeta.ErrIdentity) {
		t.Errorf("a longer one: %v", err)
	}
}

func TestManyMaySignAtOnce(t *testing.T) {
	s := signer(t, keyA, keyB, false)
	var all sync.WaitGroup
	for i := range 8 {
		plain := strings.Repeat("x", i+1)
		want := s.Sign(plain)
		all.Go(func() {
			for range 500 {
				if got := s.Sign(plain); got != want || !current(s, got) {
					t.Errorf("%q is not %q", got, want)
					return
				}
			}
		})
	}
	all.Wait()
}

func FuzzVerify(f *testing.F) {
	a, b := signer(f, keyA, keyB, false), signer(f, keyB, "", false)
	open := signer(f, keyA, keyB, true)
	for _, seed := range []string{"", "alice", a.Sign("alice"), b.Sign("alice"), a.Sign("alice")[5:], a.Sign(a.Sign("\xff\x00")), "~" + strings.Repeat("-", 20)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, sent string) {
		plain, err := a.Verify(sent)
		if err == nil && sent != a.Sign(plain) && sent != b.Sign(plain) {
			t.Errorf("%q was taken for %q", sent, plain)
		}
		if err != nil && plain != "" {
			t.Errorf("%q: %q in spite of %v", sent, plain, err)
		}
		if p, e := open.Verify(sent); errors.Is(err, identity.ErrUnsigned) && (p != sent || e != nil) || !errors.Is(err, identity.ErrUnsigned) && p != plain {
			t.Errorf("%q: %q, %v where unsigned ones are accepted", sent, p, e)
		}
		if sent == "" {
			return
		}
		for _, s := range []*identity.Signer{a, b} {
			if back, err := a.Verify(s.Sign(sent)); back != sent || err != nil {
				t.Errorf("%q came back as %q, %v", sent, back, err)
			}
		}
		if a.Plain(a.Sign(sent)) != sent || !current(a, a.Sign(sent)) || current(a, b.Sign(sent)) {
			t.Errorf("%q", sent)
		}
		if again := a.Sign(a.Plain(sent)); (again == sent) != current(a, sent) {
			t.Errorf("%q is current: %v; signed anew it is %q", sent, current(a, sent), again)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	s := signer(b, keyA, "", false)
	for b.Loop() {
		s.Sign("user0000001@example.com")
	}
}

// current reports whether an identity is as Sign makes it.
func current(s *identity.Signer, stored string) bool {
	return stored != "" && s.Sign(s.Plain(stored)) == stored
}
