// Package tokenizer counts and numbers the tokens of a text as BERT's uncased WordPiece does.
//
// It gives the ids of Hugging Face's tokenizers (measured against 0.23 on every code point: package
// tests name the rare ones that differ) and keeps, for every token, the bytes of the text that it came
// from. Guarantees:
//
//   - offsets lie inside the text, on rune boundaries, and never go backwards;
//   - nothing is truncated or padded, whatever tokenizer.json says;
//   - text is only text: a literal "[CLS]" in it is punctuation and letters, never the special token;
//   - a text cut before a token that does not continue a word gives the same tokens in two parts;
//   - any bytes are accepted; what is not UTF-8 is left out, as the model's clean-up does.
package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Token is one token of a text.
type Token struct {
	ID         int32 // in the model's vocabulary; 0 from an Approximation
	Start, End int   // the bytes of the text that it stands for
	Continues  bool  // it goes on inside a word ("##ing"): a text must not be cut before it
}

// The special tokens of BERT's uncased vocabulary. Encode never gives CLS and SEP; who runs a model puts
// them around.
const (
	Unknown int32 = 100 // [UNK]
	CLS     int32 = 101 // [CLS]
	SEP     int32 = 102 // [SEP]
)

// MaxWord is the most tokens that one word can have, as a longer one is a single Unknown: whoever cuts
// texts of at least so many tokens always finds a place.
const MaxWord = 100

// WordPiece is BERT's tokenizer with a vocabulary. It is safe for concurrent use.
type WordPiece struct {
	words   map[string]int32 // pieces that begin a word
	pieces  map[string]int32 // pieces that go on, without their ##
	longest int              // bytes of the longest piece
}

// Load reads the vocabulary from a tokenizer.json of Hugging Face. A file that describes another kind of
// tokenizer than BERT's uncased one is an error, as it would be computed wrongly.
func Load(path string) (*WordPiece, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	w, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %s: %w", path, err)
	}
	return w, nil
}

func parse(raw []byte) (*WordPiece, error) {
	var file struct {
		Normalizer struct {
			Type         string `json:"type"`
			CleanText    bool   `json:"clean_text"`
			ChineseChars bool   `json:"handle_chinese_chars"`
			StripAccents *bool  `json:"strip_accents"` // null: as lowercase
			Lowercase    bool   `json:"lowercase"`
		} `json:"normalizer"`
		PreTokenizer struct {
			Type string `json:"type"`
		} `json:"pre_tokenizer"`
		Model struct {
			Type     string           `json:"type"`
			Unknown  string           `json:"unk_token"`
			Prefix   string           `json:"continuing_subword_prefix"`
			MaxChars int              `json:"max_input_chars_per_word"`
			Vocab    map[string]int32 `json:"vocab"`
		} `json:"model"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	n, m := file.Normalizer, file.Model
	if n.Type != "BertNormalizer" || !n.CleanText || !n.ChineseChars || !n.Lowercase ||
		(n.StripAccents != nil && !*n.StripAccents) || file.PreTokenizer.Type != "BertPreTokenizer" {
		return nil, fmt.Errorf("only the uncased BERT normalizer is supported")
	}
	if m.Type != "WordPiece" || m.Prefix != "##" || m.MaxChars != MaxWord {
		return nil, fmt.Errorf("only WordPiece with ## and words of %d characters is supported", MaxWord)
	}
	if m.Vocab[m.Unknown] != Unknown || m.Vocab["[CLS]"] != CLS || m.Vocab["[SEP]"] != SEP {
		return nil, fmt.Errorf("the special tokens are not those of BERT's vocabulary")
	}

	w := &WordPiece{words: make(map[string]int32, len(m.Vocab)), pieces: make(map[string]int32, len(m.Vocab)/4)}
	for piece, id := range m.Vocab {
		if rest, ok := strings.CutPrefix(piece, m.Prefix); ok && rest != "" {
			w.pieces[rest] = id
			piece = rest
		} else {
			w.words[piece] = id
		}
		w.longest = max(w.longest, len(piece))
	}
	return w, nil
}

// Encode gives the tokens of a text, without CLS and SEP. A text of spaces has none.
func (w *WordPiece) Encode(text string) []Token {
	tokens := make([]Token, 0, len(text)/4+8)
	scan(text, func(word *word) {
		tokens = w.encode(tokens, word)
	})
	return tokens
}

// encode appends a word's pieces: always the longest that fits, or Unknown for the whole word when at
// one place none does.
func (w *WordPiece) encode(tokens []Token, word *word) []Token {
	mark := len(tokens)
	unknown := Token{ID: Unknown, Start: word.start, End: word.end}
	if word.runes > MaxWord {
		return append(tokens, unknown)
	}
	known, from := w.words, 0
	for from < len(word.text) {
		to := min(from+w.longest, len(word.text))
		id, ok := int32(0), false
		for ; to > from; to-- { // a cut inside a rune is never in the vocabulary
			if id, ok = known[string(word.text[from:to])]; ok {
				break
			}
		}
		if !ok {
			return append(tokens[:mark], unknown)
		}
		tokens = append(tokens, Token{ID: id, Start: word.starts[from], End: word.ends[to-1], Continues: from > 0})
		known, from = w.pieces, to
	}
	return tokens
}
