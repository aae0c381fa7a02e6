"""Model directories in Hugging Face form, and two-way tables between other people's weights and ours."""
