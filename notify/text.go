package notify

import (
	"io"
	"mime"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html/charset"
)

// clean makes a text safe to print: control characters, and what is no UTF-8,
// become U+FFFD.
func clean(text string) string {
	if printable(text) {
		return text
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, text)
}

// readable does what clean does, with line breaks and tabs as one blank.
func readable(text string) string {
	if printable(text) {
		return text
	}
	var b strings.Builder
	b.Grow(len(text))
	gap := false
	for _, r := range text {
		switch {
		case r == '\t', r == '\n', r == '\r', r == '\u2028', r == '\u2029':
			gap = true
			continue
		case unicode.IsControl(r):
			r = utf8.RuneError
		}
		if gap && r != ' ' && b.Len() > 0 {
			b.WriteByte(' ')
		}
		gap = false
		b.WriteRune(r)
	}
	return b.String()
}

// printable tells whether the text is ASCII without control characters.
func printable(text string) bool {
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// cut cuts a text after maxText bytes, and not within a character.
func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	end := maxText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return strings.Clone(text[:end]) // the rest is not to stay in memory
}

// decodeWords decodes the encoded words (RFC 2047 section 2) in a header field.
// Neighbours in the same charset are put together before they are decoded: many
// senders split between the bytes of one character, which section 5 forbids.
// What is wrongly encoded stays as it is.
func decodeWords(field string) string {
	if !strings.Contains(field, "=?") {
		return field
	}
	var out, bytes strings.Builder // bytes are of words not yet written, in label
	label := ""
	flush := func() {
		out.WriteString(fromCharset(label, bytes.String()))
		bytes.Reset()
		label = ""
	}
	for field != "" {
		start := strings.Index(field, "=?")
		if start < 0 {
			break
		}
		word := firstWord(field[start:])
		wordLabel, text, ok := decodeWord(word)
		// Only blanks between two words are no part of the text (section 6.2).
		if gap := field[:start]; !ok || label == "" || strings.Trim(gap, " \t\r\n") != "" {
			flush()
			out.WriteString(gap)
		}
		if !ok {
			out.WriteString("=?")
			field = field[start+2:]
			continue
		}
		if label != "" && label != wordLabel {
			flush()
		}
		label = wordLabel
		bytes.WriteString(text)
		field = field[start+len(word):]
	}
	flush()
	return out.String() + field
}

// firstWord is what may be an encoded word at the beginning of the text: up to
// the "?=" behind the third question mark; empty if there is none.
func firstWord(text string) string {
	i := len("=?")
	for range 2 { // charset, encoding
		n := strings.IndexByte(text[i:], '?')
		if n < 0 || n > maxLabel {
			return ""
		}
		i += n + 1
	}
	n := strings.IndexByte(text[i:], '?')
	if n < 0 || !strings.HasPrefix(text[i+n:], "?=") {
		return ""
	}
	return text[:i+n+2]
}

// maxLabel bounds the name of a charset or language, in bytes.
const maxLabel = 64

// decodeWord takes an encoded word apart into its charset and its bytes.
func decodeWord(word string) (label, text string, ok bool) {
	if word == "" {
		return "", "", false
	}
	label, rest, _ := strings.Cut(word[2:], "?")
	label, _, _ = strings.Cut(label, "*") // a language may follow (RFC 2231 section 5)
	raw := mime.WordDecoder{CharsetReader: func(_ string, in io.Reader) (io.Reader, error) { return in, nil }}
	text, err := raw.Decode("=?x-raw?" + rest)
	return strings.ToLower(label), text, err == nil && label != ""
}

// fromCharset makes UTF-8 of bytes in a charset. An unknown one is taken for
// UTF-8: mostly it is ASCII that was given a private name.
func fromCharset(label, bytes string) string {
	if label == "" || label == "utf-8" || label == "us-ascii" {
		return bytes
	}
	e, _ := charset.Lookup(label)
	if e == nil {
		return bytes
	}
	text, err := e.NewDecoder().String(bytes)
	if err != nil {
		return bytes
	}
	return text
}
