// Package dovecotconf writes the Dovecot settings that fit a config.toml.
//
// It knows what dovepush needs of Dovecot 2.3 and 2.4: a place for METADATA,
// the ox push-notification driver with the endpoint's URL, and a way in, the
// master user or the DoveAdm HTTP API. It reads no file and prints no secret:
// where one belongs there is a marker such as PASSWORD, and a step at the top
// says what to replace it by.
//
// Usual order of calls: [ParseVersion] and [ParseFrom] for what the command
// line says, then [Write]. The words are in the templates beside this file.
package dovecotconf
