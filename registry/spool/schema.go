package spool

import _ "embed" // for the schema

//go:embed schema/001_spool.sql
var schema001 string

// schema is the changes in order; version n is what the first n of them make.
// One that was released is never edited: add another.
var schema = []string{schema001}
