// Package events is Leafmill's contract.
package events
