package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
)

// number is a JSON number that must be there: encoding/json would take null for 0.
type number float32

// UnmarshalJSON refuses null, what is no number and what a float32 cannot hold.
func (n *number) UnmarshalJSON(data []byte) error {
	if c := data[0]; c != '-' && (c < '0' || c > '9') {
		return fmt.Errorf("a value is no number: %.20s", data)
	}
	value, err := strconv.ParseFloat(string(data), 32)
	if err != nil {
		return fmt.Errorf("a value is no number that a vector can hold: %.20s", data)
	}
	*n = number(value)
	return nil
}

// decodeEmbeddings reads an answer of the embeddings API to a call with so many texts. It
// gives the vectors in the order of the texts, all of one dimension, and the number of
// tokens, 0 when the answer does not say.
func decodeEmbeddings(data []byte, texts int) (vectors [][]float32, tokens int, err error) {
	var answer struct {
		Data []struct {
			Index     *int     `json:"index"`
			Embedding []number `json:"embedding"`
		} `json:"data"`
		// Only told to people: an odd one is no reason to lose the vectors.
		Usage json.RawMessage `json:"usage"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, 0, err
	}
	if len(answer.Data) != texts {
		return nil, 0, fmt.Errorf("%d vectors for %d texts", len(answer.Data), texts)
	}
	vectors = make([][]float32, texts)
	for _, item := range answer.Data {
		switch dims := len(item.Embedding); {
		case item.Index == nil:
			return nil, 0, errors.New("a vector has no index")
		case *item.Index < 0 || *item.Index >= texts:
			return nil, 0, fmt.Errorf("index %d of %d texts", *item.Index, texts)
		case vectors[*item.Index] != nil:
			return nil, 0, fmt.Errorf("index %d twice", *item.Index)
		case dims == 0 || dims > maxDims:
			return nil, 0, fmt.Errorf("a vector of %d values", dims)
		case dims != len(answer.Data[0].Embedding):
			return nil, 0, fmt.Errorf("vectors of %d and %d values", len(answer.Data[0].Embedding), dims)
		}
		vector := make([]float32, len(item.Embedding))
		zero := true
		for i, value := range item.Embedding {
			vector[i] = float32(value)
			zero = zero && vector[i] == 0
		}
		if zero {
			return nil, 0, fmt.Errorf("vector %d is zero", *item.Index)
		}
		vectors[*item.Index] = vector
	}
	return vectors, usageTokens(answer.Usage), nil
}

// usageTokens reads the usage of an answer; 0 when it says nothing or nonsense.
func usageTokens(data json.RawMessage) int {
	var usage struct {
		Prompt float64 `json:"prompt_tokens"`
		Total  float64 `json:"total_tokens"`
	}
	if json.Unmarshal(data, &usage) != nil {
		return 0
	}
	for _, tokens := range []float64{usage.Prompt, usage.Total} {
		if tokens >= 1 && tokens <= math.MaxInt32 {
			return int(tokens)
		}
	}
	return 0
}
