package webhook

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Lengths of a secret in bytes, as the convention has them: section "Signature
// scheme" of https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
const (
	minSecret = 24
	maxSecret = 64
)

const secretPrefix = "whsec_"

// CheckSecret says what is wrong with a secret to sign with, without showing
// it. It is "whsec_" and 24 to 64 random bytes in Base64, for example
// (echo -n whsec_; openssl rand -base64 32).
func CheckSecret(secret string) error {
	_, err := key(secret)
	return err
}

func key(secret string) ([]byte, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(secret), secretPrefix)
	if !ok {
		return nil, errors.New("the secret does not begin with " + secretPrefix)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("what follows " + secretPrefix + " in the secret is not Base64")
	}
	if len(raw) < minSecret || len(raw) > maxSecret {
		return nil, fmt.Errorf("the secret has %d bytes, must have %d to %d", len(raw), minSecret, maxSecret)
	}
	return raw, nil
}

// signer signs with each of several secrets.
type signer []*standardwebhooks.Webhook

func newSigner(ctx context.Context, secrets func(context.Context) ([]string, error)) (signer, error) {
	list, err := secrets(ctx)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("there is no secret to sign with")
	}
	var s signer
	for _, secret := range list {
		raw, err := key(secret)
		if err != nil {
			return nil, err
		}
		hook, err := standardwebhooks.NewWebhookRaw(raw)
		if err != nil {
			return nil, err
		}
		s = append(s, hook)
	}
	return s, nil
}

// sign returns the value of webhook-signature.
func (s signer) sign(id string, at time.Time, body []byte) (string, error) {
	var signatures []string
	for _, hook := range s {
		signature, err := hook.Sign(id, at, body)
		if err != nil {
			return "", err
		}
		signatures = append(signatures, signature)
	}
	return strings.Join(signatures, " "), nil
}
