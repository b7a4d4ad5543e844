package mesh

import (
	"fmt"
	"slices"
	"strings"
)

// An authKey lets machines join.
type authKey struct {
	Key     string
	Once    bool     // good for one machine
	Expired bool     // refused from now on
	Tags    []string // what a machine may ask for, where there is any; else everything
	Used    int      // machines that joined with it
}

// parseAuthKey reads "KEY[,once][,expired][,tags=tag:a+tag:b]".
func parseAuthKey(text string) (*authKey, error) {
	name, words, _ := strings.Cut(text, ",")
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' }) {
		return nil, fmt.Errorf("auth key %q is empty, or has a space or slash", name)
	}
	parsed := &authKey{Key: name}
	for word := range strings.SplitSeq(words, ",") {
		tags, isTags := strings.CutPrefix(word, "tags=")
		switch {
		case word == "" && words == "":
		case word == "once":
			parsed.Once = true
		case word == "expired":
			parsed.Expired = true
		case isTags:
			parsed.Tags = strings.Split(tags, "+")
		default:
			return nil, fmt.Errorf("auth key %q: unknown word %q", name, word)
		}
	}
	return parsed, nil
}

// refuse says why a machine that asks for these tags may not join with the key, in words of the kind that Tailscale's
// control server uses. It is empty where the machine may. A nil key is one that nobody knows.
func (k *authKey) refuse(tags []string) string {
	switch {
	case k == nil:
		return "invalid key: API key does not exist"
	case k.Expired:
		return "invalid key: API key has expired"
	case k.Once && k.Used > 0:
		return "invalid key: API key has been used already"
	}
	for _, tag := range tags {
		if len(k.Tags) > 0 && !slices.Contains(k.Tags, tag) {
			return fmt.Sprintf("requested tags [%s] are invalid or not permitted", tag)
		}
	}
	return ""
}
