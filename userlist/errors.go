package userlist

import (
	"errors"
	"fmt"
)

// ErrMalformed is found by errors.Is in every error that tells of a list's
// content; its message names the list and the line or entry.
var ErrMalformed = errors.New("malformed list")

// errTaken answers an All after the first, or after Close.
var errTaken = errors.New("this list has been given out or closed already")

// malformed is what is wrong with a list, in words that need no more.
type malformed string

func (m malformed) Error() string        { return string(m) }
func (m malformed) Is(target error) bool { return target == ErrMalformed }

// maxQuoted is how many bytes of a list's text a message shows.
const maxQuoted = 100

// quote makes text of a list fit for a message: one line, without control
// characters, and not long.
func quote[T string | []byte](text T) string {
	if len(text) > maxQuoted {
		return fmt.Sprintf("%q...", text[:maxQuoted])
	}
	return fmt.Sprintf("%q", text)
}
