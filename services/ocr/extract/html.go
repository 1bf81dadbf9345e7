package extract

import (
	"errors"
	"io"
	"strings"

	"github.com/JohannesKaufmann/html-to-markdown/v2/converter"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/base"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/commonmark"
	"github.com/JohannesKaufmann/html-to-markdown/v2/plugin/table"
	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"github.com/leafmill/leafmill/internal/sandbox"
)

const htmlParser = "html"

// Parsers are the parsers that run in children, for sandbox.Main.
func Parsers() map[string]sandbox.Parser {
	return map[string]sandbox.Parser{
		htmlParser: func(_ []string, in io.Reader, out io.Writer) error { return htmlToMarkdown(in, out) },
	}
}

// htmlToMarkdown turns a page in UTF-8 into Markdown: what a reader sees, without
// scripts, styles and hidden elements.
func htmlToMarkdown(in io.Reader, out io.Writer) error {
	doc, err := html.Parse(in)
	if err != nil {
		return err
	}
	reduce(doc)
	// Nothing is escaped: the text is read by people and models, not rendered again.
	c := converter.NewConverter(converter.WithEscapeMode(converter.EscapeModeDisabled), converter.WithPlugins(
		base.NewBasePlugin(),
		commonmark.NewCommonmarkPlugin(),
		table.NewTablePlugin(table.WithCellPaddingBehavior(table.CellPaddingBehaviorMinimal), table.WithHeaderPromotion(true)),
	))
	markdown, err := c.ConvertNode(doc)
	if err != nil {
		return err
	}
	_, err = out.Write(markdown)
	return errors.Join(err)
}

// reduce removes what is not shown, and addresses that say nothing away from the page.
func reduce(n *html.Node) {
	var next *html.Node
	for c := n.FirstChild; c != nil; c = next {
		next = c.NextSibling
		if unseen(c) {
			n.RemoveChild(c)
			continue
		}
		if c.DataAtom == atom.A && !strings.Contains(attribute(c, "href"), "://") {
			c.Data, c.DataAtom, c.Attr = "span", atom.Span, nil
		}
		if c.DataAtom == atom.Img {
			alt := strings.TrimSpace(attribute(c, "alt"))
			n.InsertBefore(&html.Node{Type: html.TextNode, Data: alt}, c)
			n.RemoveChild(c)
			continue
		}
		reduce(c)
	}
}

func unseen(n *html.Node) bool {
	switch n.Type {
	case html.CommentNode:
		return true
	case html.ElementNode:
	default:
		return false
	}
	switch n.DataAtom {
	case atom.Script, atom.Style, atom.Noscript, atom.Template, atom.Iframe, atom.Object, atom.Embed, atom.Svg, atom.Head:
		return true
	}
	for _, a := range n.Attr {
		if a.Key == "hidden" {
			return true
		}
	}
	return false
}

func attribute(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}
