"""The API's document as a page for people: pure functions from a Document to HTML."""
