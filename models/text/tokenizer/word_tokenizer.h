#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fovea::models {

/// Writes a Unigram tokenizer whose pieces are the words of a list, for a text encoder that is
/// trained on captions made of those words: tokenizer.json, spiece.model and tokenizer_config.json.
///
/// Pieces, in id order: `<pad>`, `</s>`, `<unk>`; each word as one piece ("▁red"), and each single
/// character of punctuation among the words also without the mark, as it follows a word ("red,");
/// the mark alone; every printable ASCII character. A longer piece always wins over shorter ones:
/// other ASCII words are spelled, characters beyond ASCII are `<unk>`.
///
/// The ids are the same for transformers' T5Tokenizer, sentencepiece and `Tokenizer`, from either
/// file. (sentencepiece alone takes a tab for a character, "▁" in a text for one more space, and
/// "</s>" for letters; none of them reaches it from a cleaned prompt of the grammar.)
///
/// folder   is made where it does not exist; files in it are replaced
/// words    printable ASCII without white space, unlike each other, at most 100 characters each
/// throws   Error usage for a word that is not, resource when a file cannot be written
/// source   Kudo, "Subword Regularization", 2018 (the model); the formats are those of tokenizers'
///          tokenizer.json and of sentencepiece_model.proto
void write_word_tokenizer(const std::filesystem::path& folder,
                          const std::vector<std::string>& words);

/// Number of ids of that tokenizer: the `vocab_size` of its text encoder. throws as above
int64_t word_vocab_size(const std::vector<std::string>& words);

}  // namespace fovea::models
