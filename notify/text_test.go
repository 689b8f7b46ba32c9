package notify

import (
	"strings"
	"testing"
)

func TestEncodedWordsAreDecoded(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                                 "plain",
		"=?utf-8?q?J=C3=B6rg?= <j@example.com>": "Jörg <j@example.com>",
		"=?UTF-8?B?SsO2cmc=?=":                  "Jörg",
		"=?iso-8859-1?Q?Andr=E9_?= =?ISO-8859-1?q?Pirard?=":              "André Pirard",
		"a =?utf-8?q?b?= c =?utf-8?q?d?=  \t =?us-ascii?q?e?= f":         "a b c de f",
		"=?koi8-r?B?8NLJ18XU?=":                                          "Привет",
		"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=":                             "日本",
		"=?gb2312?B?xOO6ww==?=":                                          "你好",
		"=?windows-1252?q?=80=93?=":                                      "€“",
		"=?utf-8*en?q?with_a_language?=":                                 "with a language",
		"=?utf-8?q?split_=C3?= =?utf-8?q?=BC?=":                          "split ü",
		"=?utf-8?b?8J+V?=\r\n =?utf-8?b?ig==?=":                          "🕊",
		"=?utf-8?q?one?==?utf-8?q?two?=":                                 "onetwo",
		"=?gb2312?b?xA==?= =?gb2312?b?4w==?=":                            "你",
		"=?iso-8859-1*fr?q?=E9?=":                                        "é",
		"=?iso-8859-1?q?=E9?= =?utf-8?q?=C3=A9?=":                        "éé",
		"=?x-unknown?q?caf=C3=A9?=":                                      "café",
		"=?utf-8?x?a?=":                                                  "=?utf-8?x?a?=",
		"=?utf-8?b?!?= x":                                                "=?utf-8?b?!?= x",
		"=?utf-8?q?a":                                                    "=?utf-8?q?a",
		"=?utf-8?q?open =?utf-8?q?word?=":                                "=?utf-8?q?open word",
		"=?=?=?":                                                         "=?=?=?",
		"=??q?a?=":                                                       "=??q?a?=",
		"=?utf-8?q??= x":                                                 " x",
		"=?" + strings.Repeat("x", 100) + "?q?a?= =?utf-8?q?b?=":         "=?" + strings.Repeat("x", 100) + "?q?a?= b",
		"=?utf-8?q?a?= =?bad =?utf-8?q?b?=":                              "a =?bad b",
		"=?utf-8?q?=0D=0ABcc=3A_x=00?=":                                  " Bcc: x\uFFFD",
		"=?iso-8859-1?q?=FF=FE?= =?utf-8?q?=FF?= =?utf-7?q?+AGE-?=":      "ÿþ\uFFFD+AGE-",
		"Re: =?utf-8?q?=5Bx=5D?= =?utf-8?q?=E2=82=AC?= and\r\n\tso on\t": "Re: [x]€ and so on",
	} {
		got := readable(decodeWords(in))
		if strings.HasPrefix(want, " Bcc") {
			want = want[1:] // line breaks at the beginning are no text
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
